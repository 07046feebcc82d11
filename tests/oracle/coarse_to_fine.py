"""The restricted search in plain loops: the slow twin of anomaly/coarse_to_fine.py.

Cells are numbered as their coarse tokens are; near cells are a set of pairs (query's, key's).
"""

import math


def parents(fine_places, coarse_places, ratio):
    """Number of the coarse cell around each fine place, both (depth, height, width)."""
    return [
        coarse_places.index(tuple(at // r for at, r in zip(place, ratio, strict=True)))
        for place in fine_places
    ]


def alike(queries, keys, n_cells):
    """Pairs of cells of which either is among the `n_cells` nearest of the other."""
    pairs = set()
    for q, query in enumerate(queries):
        ranked = sorted(range(len(keys)), key=lambda k: math.dist(query, keys[k]))
        pairs |= {(q, k) for k in ranked[:n_cells]}
    for k, key in enumerate(keys):
        ranked = sorted(range(len(queries)), key=lambda q: math.dist(queries[q], key))
        pairs |= {(q, k) for q in ranked[:n_cells]}
    return pairs


def close(queries, keys, radius):
    """Pairs of cells whose places differ by at most `radius` in each coordinate."""
    return {
        (q, k)
        for q, place in enumerate(queries)
        for k, other in enumerate(keys)
        if all(abs(a - b) <= radius for a, b in zip(place, other, strict=True))
    }


def compared(near, query_parents, key_parents):
    """Pairs of cells that are searched: where a cell finds no token, all are."""
    every = {(q, k) for q in query_parents for k in key_parents}
    pairs = near & every
    found_q, found_k = {q for q, _ in pairs}, {k for _, k in pairs}
    return pairs | {(q, k) for q, k in every if q not in found_q or k not in found_k}


def nearest(queries, query_parents, keys, key_parents, near):
    """Distance of each query to its nearest key in the cells that are searched."""
    pairs = compared(near, query_parents, key_parents)
    return [
        min(
            math.dist(query, key)
            for key, k in zip(keys, key_parents, strict=True)
            if (q, k) in pairs
        )
        for query, q in zip(queries, query_parents, strict=True)
    ]
