"""Likeness and overlap of two volumes on one grid, voxel by voxel."""

import math
from collections import Counter


def similarity(pairs):
    """Pairs of grey levels -> 2 I(A, B) / (H(A) + H(B)), the entropies by their definition."""
    pairs = list(pairs)

    def entropy(values):
        counts = Counter(values)
        return -sum(k / len(pairs) * math.log(k / len(pairs)) for k in counts.values())

    a, b = entropy(one for one, _ in pairs), entropy(other for _, other in pairs)
    return 2 * (a + b - entropy(pairs)) / (a + b)


def dice(pairs):
    """Pairs of inside or outside -> 2 |A and B| / (|A| + |B|)."""
    pairs = list(pairs)
    both = sum(bool(one and other) for one, other in pairs)
    return 2 * both / sum(bool(one) + bool(other) for one, other in pairs)


def medoid(matrix):
    """Rows of dissimilarities -> the first subject whose median to the others is least."""

    def median(row, own):
        others = sorted(value for k, value in enumerate(row) if k != own)
        middle = len(others) // 2
        return others[middle] if len(others) % 2 else (others[middle - 1] + others[middle]) / 2

    medians = [median(row, own) for own, row in enumerate(matrix)]
    return medians.index(min(medians))
