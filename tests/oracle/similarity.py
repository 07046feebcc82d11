"""Mutual similarity in plain loops (CoDeGraph3D section 3.1): the slow twin of the kernel."""

import math


def nearest(queries, keys):
    """Distance of each query to its nearest key."""
    return [min(math.dist(q, k) for k in keys) for q in queries]


def token_scores(subjects, own, share):
    """a(z) of each token of subject `own` against all the others."""
    per_other = [
        nearest(subjects[own], other) for place, other in enumerate(subjects) if place != own
    ]
    k = max(1, math.ceil(share * len(per_other) - 1e-9))
    return [sum(sorted(column)[:k]) / k for column in zip(*per_other, strict=True)]
