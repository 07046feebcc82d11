"""Draws time and memory against the number of subjects, as an SVG file of its own."""

WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 200, 60, 40, 110
BLUE, GREY, TEXT = "#1f6feb", "#8b949e", "#24292f"


def draw(path, times, line, r_squared, memory):
    """Plot (subjects, seconds) points with the fitted line beside (subjects, MiB) points."""
    slope, start = line
    last = max(n for n, _ in times)
    fit = [(0, start), (last, start + slope * last)]
    title = f"seconds: {start:.1f} + {slope:.3f} n, R² = {r_squared:.4f}"
    parts = [
        *panel(LEFT, title, times, fit, last),
        *panel(LEFT + WIDTH + GAP, "peak memory added, MiB", memory, memory, last),
    ]
    width, height = LEFT + 2 * WIDTH + GAP + 20, TOP + HEIGHT + 50
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = f'font-family="sans-serif" font-size="13" fill="{TEXT}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    path.write_text("\n".join([head, ground, *parts, "</svg>", ""]), encoding="utf-8")


def panel(left, title, points, line, last):
    """One pair of axes from 0, with its points and a line."""
    x_step, y_step = step(last), step(max(y for _, y in [*points, *line]))
    x_top = x_step * -(-last // x_step)
    y_top = y_step * (int(max(y for _, y in [*points, *line]) / y_step) + 1)

    def at(x, y):
        return left + WIDTH * x / x_top, TOP + HEIGHT * (1 - y / y_top)

    yield f'<text x="{left}" y="{TOP - 15}" font-weight="bold">{title}</text>'
    for tick in range(round(y_top / y_step) + 1):
        _, y = at(0, tick * y_step)
        yield f'<path d="M{left} {y:.1f}h{WIDTH}" stroke="{GREY}" stroke-opacity="0.3"/>'
        yield f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick * y_step:g}</text>'
    for tick in range(round(x_top / x_step) + 1):
        x, y = at(tick * x_step, 0)
        yield f'<text x="{x:.1f}" y="{y + 18:.1f}" text-anchor="middle">{tick * x_step:g}</text>'
    under = f'x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 38}" text-anchor="middle"'
    yield f"<text {under}>subjects n</text>"
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
    yield f'<polyline points="{joined}" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
    for x, y in (at(*point) for point in points):
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{BLUE}"/>'


def step(largest):
    """A round distance between ticks, about five of them up to the largest value."""
    power = 10.0 ** (len(str(int(largest))) - 1) if largest >= 1 else 0.1
    return next(s * power for s in (0.1, 0.2, 0.5, 1, 2) if largest <= 6 * s * power)
