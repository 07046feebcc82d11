"""Who shares what is unusual, in plain loops: the slow twin of anomaly/contamination.py."""

import math

from scipy import stats

from tests.oracle.calibration import MAD_TO_SIGMA, lower_median


def suspicious_links(distances, unusual, spec):
    """[other][token] distances and [token] excess -> set of (other, token)."""
    n = len(unusual)
    most = sorted(unusual, reverse=True)[: max(1, math.ceil(spec.unusual_share * n))]
    found = set()
    for token in range(n):
        column = [row[token] for row in distances]
        for other, distance in enumerate(column):
            if distance < spec.endurance * lower_median(column) and unusual[token] >= most[-1]:
                found.add((other, token))
    return found


def linked(counts, spec):
    """[from][to] numbers of links -> set of (one, other), both ways."""
    n = len(counts)
    both = [[0 if i == j else counts[i][j] + counts[j][i] for j in range(n)] for i in range(n)]
    usual = [lower_median([both[i][j] for j in range(n) if j != i]) for i in range(n)]
    pairs = [both[i][j] for i in range(n) for j in range(n) if i != j]
    middle = lower_median(pairs)
    spread = MAD_TO_SIGMA * lower_median([abs(links - middle) for links in pairs])
    dispersion = max(1.0, spread**2 / max(middle, 0.25))
    found = set()
    for i in range(n):
        for j in range(n):
            if i == j or both[i][j] < spec.min_links:
                continue
            mean = max(0.25, usual[i], usual[j]) / dispersion
            # of a number that is not whole the tail is read between the two about it
            chance = stats.gamma.cdf(mean, both[i][j] / dispersion)
            if chance < spec.significance / (n * (n - 1) / 2):
                found.add((i, j))
    return found
