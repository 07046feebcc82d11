"""How unusual a token is beside its analogues, in plain loops: the slow twin of analogues.py."""

import math

from tests.oracle.calibration import lower_median


def log_excess(own, others, raw, share):
    """[token] vectors, [other][token] vectors and raw scores -> [token] log ratios."""
    k = max(1, math.ceil(share * len(others) - 1e-9))
    mine, theirs = [], []
    for token in own:
        nearest = []
        for other, scores in zip(others, raw, strict=True):
            apart = [math.dist(token, one) for one in other]
            at = apart.index(min(apart))
            nearest.append((apart[at], scores[at]))
        nearest.sort(key=lambda pair: pair[0])
        mine.append(sum(distance for distance, _ in nearest[:k]) / k)
        theirs.append(sum(score for _, score in nearest[:k]) / k)
    return [a - b for a, b in zip(logs(mine), logs(theirs), strict=True)]


def logs(scores):
    least = 1e-3 * lower_median(scores)
    return [math.log(max(score, least)) for score in scores]
