"""Figures of resampled subjects by plain lists: every voxel written out as often as it is drawn."""

from tests.oracle import ranking


def voxels(subjects, weights):
    """Lists of scores and truths of subjects, each subject so many times."""
    scores, truth = [], []
    for (own_scores, own_truth), times in zip(subjects, weights, strict=True):
        scores += list(own_scores) * times
        truth += list(own_truth) * times
    return scores, truth


def best_dice(scores, truth):
    """The highest Dice of all thresholds, each tried."""
    found = []
    for threshold in set(scores):
        both = sum(t for s, t in zip(scores, truth, strict=True) if s >= threshold)
        found.append(2 * both / (sum(s >= threshold for s in scores) + sum(truth)))
    return max(found)


def figures(subjects, weights):
    """Area, average precision and best Dice of the subjects, each so many times."""
    scores, truth = voxels(subjects, weights)
    return {
        "voxel_auroc": ranking.area_under_roc(scores, truth),
        "voxel_ap": ranking.average_precision(scores, truth),
        "dice_oracle": best_dice(scores, truth),
    }
