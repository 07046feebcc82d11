"""What is varied: the settings of each experiment, and which of them a cohort cannot offer.

(a) the share of abnormal subjects in the batch, (b) acquisition differences inside it and a second
site, (c) its size, (d) the parts of the method, one at a time, (e) peers on the same tokens and
splits. All else stays as the recipe has it, in batches of one size and one share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dicom_node.anomaly.spec import GuardSpec, MethodSpec, ScoringSpec, SearchSpec
from dicom_node.evaluate.changes import CHANGES, Change
from dicom_node.evaluate.splits import Room, n_of_share
from dicom_node.evaluate.views import View

#: of experiment (a), and of the first site in the batch of a mixed one
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SECOND_SHARES = (0.0, 0.25, 0.5)
#: where the guard is tried when all shares would take too long
GUARDED_SHARE = 0.3
SIZES = (5, 10, 15, 20, 30, 40, 50)
#: batches of the other experiments: at most so many, this share of them abnormal
SIZE, SHARE = 20, 0.2
#: fewer subjects make no batch
LEAST = 4
#: of the outlier exclusion when it is on and the recipe leaves it off, in robust deviations
OUTLIER_LIMIT = 5.0
EXPERIMENTS = "abcde"
_WHOLE = View()


@dataclass(frozen=True, slots=True)
class Way:
    """How a batch's test subjects are scored."""

    scoring: ScoringSpec
    search: SearchSpec
    view: View = _WHOLE
    #: of `peers.PEERS`; empty is the method itself
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of an experiment."""

    experiment: str
    name: str
    strength: str
    size: int
    n_lesioned: int
    #: with several, the best by average precision is reported
    ways: tuple[Way, ...]
    change: Change | None = None
    #: who is changed: "batch" (those of `splits.every_second` in it) or "test"
    changed: str = ""
    n_second: int = 0
    #: which site's subjects are tested
    tested: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run."""

    settings: tuple[Setting, ...]
    #: what the cohort cannot offer, and why
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Base:
    """What all experiments share."""

    method: MethodSpec
    room: Room
    size: int
    #: abnormal subjects in the batches of (b) to (e), and in those where the guard has most to do
    n_lesioned: int
    n_most: int
    quick: bool
    #: of experiment (b), by name
    changes: tuple[str, ...]

    @property
    def way(self) -> Way:
        return Way(self.method.scoring, self.method.search)

    def setting(self, experiment: str, name: str, strength: str, way: Way | None = None) -> Setting:
        ways = (way or self.way,)
        return Setting(experiment, name, strength, self.size, self.n_lesioned, ways)


def make(
    experiments: str,
    method: MethodSpec,
    room: Room,
    *,
    ct: bool,
    quick: bool,
    limit: int = SIZE,
    changes: Sequence[str] = (),
) -> Plan | None:
    """Return the settings of the chosen experiments; None where there is no batch of `LEAST`.

    Parameters
    ----------
    experiments
        Some of the letters "abcde", in the order in which they are to be run.
    ct
        Changes of MR are left out.
    quick
        Fewer settings.
    limit
        Size of the batches, where the cohort allows it.
    changes
        Names of those of (b); none takes all, or every second one when quick.
    """
    size = _size(room, limit)
    if size < LEAST:
        return None
    possible = [n for n in range(size + 1) if room.allows(size, n)]
    near = min(possible, key=lambda n: (abs(n - SHARE * size), n))
    most = max((n for n in possible if n <= size // 2), default=min(possible))
    names = tuple(changes) or possible_changes(ct)[:: 2 if quick else 1]
    base = _Base(method, room, size, near, most, quick, names)
    settings: list[Setting] = []
    left_out: list[str] = []
    for letter in dict.fromkeys(experiments):
        for made in _MAKERS[letter](base):
            (left_out if isinstance(made, str) else settings).append(made)  # type: ignore[arg-type]
    return Plan(tuple(settings), tuple(left_out))


def possible_changes(ct: bool) -> tuple[str, ...]:  # noqa: FBT001 - of which kind of scan
    """Return the names of the changes that a modality has."""
    modality = "CT" if ct else "MR"
    return tuple(change.name for change in CHANGES if modality in change.of)


def _size(room: Room, limit: int) -> int:
    """Return the size of a batch: all of it may be normal, unless there are too few normal ones."""
    if room.n_normal >= LEAST:
        return min(limit, room.n_normal)
    return min(limit, room.n_normal + room.n_lesioned)


Made = Iterator[Setting | str]


def _shares(base: _Base) -> Made:
    """Vary (a) the share of abnormal subjects, with and without the guard."""
    shares = SHARES if base.room.n_normal >= LEAST else (*SHARES, 1.0)
    seen: set[int] = set()
    for share in shares:
        n = n_of_share(base.size, share)
        name = f"{share:.0%} abnormal"
        if not base.room.allows(base.size, n):
            had = f"{base.room.n_normal} normal and {base.room.n_lesioned} abnormal"
            yield f"a, {name}: a batch of {base.size} needs {n} abnormal subjects of {had}"
        elif n in seen:
            yield f"a, {name}: in a batch of {base.size} the same as another share"
        else:
            seen.add(n)
            plain = base.setting("a", name, f"{n} of {base.size}")
            yield replace(plain, n_lesioned=n)
            if not base.quick or share == GUARDED_SHARE:
                yield replace(_guarded(plain, base), n_lesioned=n, name=f"{name}, other guard")


def _guarded(plain: Setting, base: _Base) -> Setting:
    """Return a setting with the guard where the recipe has none, and without where it has one."""
    scoring = base.method.scoring
    guard = None if scoring.guard or scoring.calibration == "analogue" else GuardSpec()
    limit = 0.0 if scoring.outlier_limit else OUTLIER_LIMIT
    said = f"{plain.strength}; guard {_onoff(guard)}, outlier exclusion {_onoff(limit)}"
    way = replace(base.way, scoring=replace(scoring, guard=guard, outlier_limit=limit))
    return replace(plain, strength=said, ways=(way,))


def _onoff(what: object) -> str:
    return "on" if what else "off"


def _acquisitions(base: _Base) -> Made:
    """Vary (b) the acquisition, of half the batch or of the tests, and mix in a second site."""
    yield base.setting("b", "none", "as they are")
    for change in (change for change in CHANGES if change.name in base.changes):
        # to test changed ones all must be encoded anew, for a batch half of the cohort
        for who, said in (("batch", "half of the batch"), ("test", "the test subjects")):
            if who == "batch" or not base.quick:
                plain = base.setting("b", f"{change.name}, {said}", change.strength)
                yield replace(plain, change=change, changed=who)
    yield from _second_site(base)


def _second_site(base: _Base) -> Made:
    """Yield batches of two sites, tested at either."""
    if not base.room.n_second:
        yield "b, second site: none was given, or it has too few scans (--second-site)"
        return
    for share in SECOND_SHARES:
        n = n_of_share(base.size, share)
        name = f"second site {share:.0%} of the batch"
        if not base.room.allows(base.size, base.n_lesioned, n):
            yield f"b, {name}: needs {n} of its {base.room.n_second} subjects outside of a fold"
            continue
        plain = replace(base.setting("b", name, f"{n} of {base.size}"), n_second=n)
        yield plain
        yield replace(plain, name=f"{name}, tested there", tested=2)


def _sizes(base: _Base) -> Made:
    """Vary (c) the size of the batch."""
    for size in SIZES[::2] if base.quick else SIZES:
        n = n_of_share(size, base.n_lesioned / base.size)
        if base.room.allows(size, n):
            yield replace(base.setting("c", f"{size} subjects", ""), size=size, n_lesioned=n)
        else:
            yield f"c, {size} subjects: the cohort has too few outside of a fold"


def _parts(base: _Base) -> Made:
    """Vary (d) the parts of the method, one at a time."""
    yield base.setting("d", "this method", "as configured")
    yield from _views(base)
    scoring, way = base.method.scoring, base.way
    for name, changed in (
        ("no calibration", replace(scoring, calibration="none")),
        ("no smoothing", replace(scoring, smoothing_mm=0.0)),
        ("no prior", replace(scoring, prior_subjects=0.0)),
    ):
        if changed != scoring:
            yield base.setting("d", name, "", replace(way, scoring=changed))
    exhaustive = replace(base.method.search, n_cells=0, window_cells=-1)
    if len(base.method.tokens.scales) > 1 and exhaustive != base.method.search:
        yield base.setting("d", "exhaustive search", "", replace(way, search=exhaustive))
    yield from _guards(base)


def _views(base: _Base) -> Made:
    """Yield fewer axes, shorter projections, one scale alone."""
    tokens, way = base.method.tokens, base.way
    names = {0: "axial", 1: "coronal", 2: "sagittal"}
    if len(tokens.axes) > 1:
        for at, axis in enumerate(tokens.axes):
            one = replace(way, view=View(axes=(at,)))
            yield base.setting("d", f"{names[axis]} alone", "", one)
            rest = tuple(place for place in range(len(tokens.axes)) if place != at)
            if len(rest) > 1 and not base.quick:
                without = replace(way, view=View(axes=rest))
                yield base.setting("d", f"without {names[axis]}", "", without)
    full = tokens.projection_dim
    for k in (16,) if base.quick else (1, 4, 16, 64):
        if k < full:
            shorter = replace(way, view=View(k=k))
            yield base.setting("d", f"projection {k}", f"of {full}", shorter)
    if len(tokens.scales) > 1:
        for name, at in (("coarse tokens alone", 0), ("fine tokens alone", len(tokens.scales) - 1)):
            yield base.setting("d", name, "", replace(way, view=View(scales=(at,))))


def _guards(base: _Base) -> Made:
    """Yield the guard and the outlier exclusion on and off, where the batch is least clean."""
    dirty = replace(base.setting("d", "", f"{base.n_most} abnormal"), n_lesioned=base.n_most)
    for guard, limit in ((False, False), (True, False), (False, True), (True, True)):
        if guard and base.method.scoring.calibration == "analogue":
            continue  # the two do not go together
        scoring = replace(
            base.method.scoring,
            guard=(base.method.scoring.guard or GuardSpec()) if guard else None,
            outlier_limit=(base.method.scoring.outlier_limit or OUTLIER_LIMIT) if limit else 0.0,
        )
        name = f"guard {_onoff(guard)}, outlier exclusion {_onoff(limit)}"
        yield replace(dirty, name=name, ways=(replace(base.way, scoring=scoring),))


def _peers(base: _Base) -> Made:
    """Compare (e) the method and its peers."""
    yield base.setting("e", "this method", "as configured")
    for name, said, peers in (
        ("MuSc-style, slice-wise", "nearest 30 %, raw", ("slice-wise",)),
        ("PatchCore-style memory bank", "greedy coreset of 10 %, raw", ("memory bank",)),
        ("voxel z-score", "best of three readings by AP", ("z both", "z bright", "z dark")),
        ("mean-image difference", "smoothed by 2 mm", ("mean difference",)),
    ):
        ways = tuple(replace(base.way, peer=peer) for peer in peers)
        yield replace(base.setting("e", name, said), ways=ways)


_MAKERS = {"a": _shares, "b": _acquisitions, "c": _sizes, "d": _parts, "e": _peers}
