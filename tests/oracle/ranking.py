"""Average precision and area under the ROC by their definitions: slow and obvious."""


def average_precision(scores, truth):
    """Go down the distinct scores; each adds its precision times what it gains in recall."""
    total, recall_before, result = sum(truth), 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [inside for score, inside in zip(scores, truth, strict=True) if score >= threshold]
        recall = sum(taken) / total
        result += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return result


def area_under_roc(scores, truth):
    """Compare every voxel inside with every one outside; a tie is half a win."""
    inside = [score for score, marked in zip(scores, truth, strict=True) if marked]
    outside = [score for score, marked in zip(scores, truth, strict=True) if not marked]
    wins = sum((one > two) + 0.5 * (one == two) for one in inside for two in outside)
    return wins / (len(inside) * len(outside))
