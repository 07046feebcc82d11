"""Made measures.csv and summary.json: what an evaluation leaves for its report."""

import csv
import json

HEAD = (
    *("experiment", "setting", "strength", "n_reference", "share_abnormal", "draw", "n_test"),
    *("metric", "value", "low", "high"),
)
SIZES = ("< 0.1 ml", "0.1 to 1 ml", "1 to 5 ml", "5 to 20 ml", "> 20 ml")
#: metric -> value, of a batch that nothing was done to
USUAL = {
    "voxel_ap": 0.71,
    "dice_oracle": 0.66,
    "voxel_auroc": 0.97,
    "lesion_sensitivity": 0.8,
    "subject_auroc": 0.9,
    "false_findings_per_normal": 0.4,
    "prevalence": 0.03,
    **{f"lesion_sensitivity {name}": 0.2 * n + 0.1 for n, name in enumerate(SIZES)},
}


def row(experiment, setting, metric, value, low="", high="", **others):
    """One row; columns that are not given are those of an unchanged batch of 20."""
    usual = {"strength": "", "n_reference": 20, "share_abnormal": 0.2, "draw": "all", "n_test": 14}
    mine = {
        "experiment": experiment,
        "setting": setting,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
    }
    return usual | mine | others


def rows(experiment, setting, drop=0.0, **others):
    """All metrics of one setting, worse by `drop` than usual, with intervals and two draws."""
    found = []
    for metric, usual in USUAL.items():
        value = min(1.0, max(0.0, usual + drop if "false" in metric else usual - drop))
        low, high = max(0.0, value - 0.08), min(1.0, value + 0.06)
        found.append(row(experiment, setting, metric, value, low, high, **others))
        for draw, shift in (("1", -0.02), ("2", 0.02)):
            single = min(1.0, max(0.0, value + shift))
            found.append(row(experiment, setting, metric, single, **others | {"draw": draw}))
    return found


def shares():
    """Experiment (a): six shares, with and without the guard."""
    return [
        line
        for tens in range(6)
        for name, worse in (("", 0.015), (", other guard", 0.04))
        for line in rows(
            *("a", f"{10 * tens}% abnormal{name}"),
            drop=worse * tens,
            share_abnormal=tens / 10,
            strength=f"{2 * tens} of 20",
        )
    ]


def acquisitions():
    """Experiment (b): perturbations of half of the batch or of the test subjects; two sites."""
    found = rows("b", "none", strength="as they are")
    names = ("noise", "bias field", "contrast", "blur", "resolution", "slice thickness")
    for n, name in enumerate(names):
        found += rows("b", f"{name}, half of the batch", 0.01 * n, strength="some & more")
        found += rows("b", f"{name}, the test subjects", 0.03 * n + 0.05, strength="some & more")
    for share in (0, 25, 50):
        name = f"second site {share}% of the batch"
        found += rows("b", name, share / 1000) + rows("b", f"{name}, tested there", 0.1)
    return found


def sizes():
    """Experiment (c): five to fifty subjects."""
    return [
        line
        for n in (5, 10, 15, 20, 30, 40, 50)
        for line in rows("c", f"{n} subjects", 0.9 / n, n_reference=n)
    ]


def parts():
    """Experiment (d): the whole method, parts of it, and a guard that is tried in a worse batch."""
    names = (
        *("axial alone", "coronal alone", "sagittal alone", "projection 16", "coarse tokens alone"),
        *("fine tokens alone", "no calibration", "no smoothing", "exhaustive search"),
    )
    found = rows("d", "whole method", strength="as configured")
    for n, name in enumerate(names):
        found += rows("d", name, 0.02 * n - 0.03)
    for guard in ("on", "off"):
        name = f"guard {guard}, outlier exclusion off"
        found += rows("d", name, 0.2, share_abnormal=0.5, strength="10 abnormal")
    return found


def peers():
    """Experiment (e): this method is not the best of them."""
    found = rows("e", "this method", strength="as configured")
    for name, worse in (
        *(("MuSc-style, slice-wise", -0.04), ("PatchCore-style memory bank", 0.08)),
        *(("voxel z-score", 0.3), ("mean-image difference", 0.45)),
    ):
        lines = rows("e", name, worse)
        # peers have no threshold of their own
        found += [line for line in lines if line["metric"] != "false_findings_per_normal"]
    return found


def everything():
    """All five experiments."""
    return [*shares(), *acquisitions(), *sizes(), *parts(), *peers()]


def summary(**others):
    """What the evaluation says of itself."""
    settings = [
        {
            "experiment": letter,
            "setting": "x",
            "n_lesions": dict(zip(SIZES, range(1, 6), strict=True)),
        }
        for letter in "abcde"
    ]
    return {
        "method": "default",
        "encoder": "dinov2-small",
        "fingerprint": "3f" * 16,
        "version": "0.1.0",
        "notice": "RESEARCH USE ONLY",
        "specification": {"tokens": {"projection_dim": 128, "axes": [0, 1, 2]}},
        "options": {"experiments": "abcde", "n_draws": 3, "masks": None},
        "subjects": {"normal": 10, "lesioned": 4},
        "metrics": {"voxel_ap": "average precision"},
        "intervals": "95 % percentile bootstrap over test subjects, 500 resamples",
        "settings": settings,
        "left_out": [],
    } | others


def write(folder, lines, about=None):
    """Write both files as an evaluation does; no summary.json without `about`."""
    with (folder / "measures.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, HEAD)
        writer.writeheader()
        writer.writerows(lines)
    if about is not None:
        (folder / "summary.json").write_text(json.dumps(about))
    return folder
