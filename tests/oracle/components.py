"""Connected components by flood fill, one voxel at a time: slow and obvious."""

from itertools import product


def flood_fill(inside):
    """Return the 26-connected components of a 3-D boolean array as lists of index triples."""
    waiting = {tuple(int(i) for i in voxel) for voxel in zip(*inside.nonzero(), strict=True)}
    components = []
    while waiting:
        frontier = [min(waiting)]
        waiting.remove(frontier[0])
        component = []
        while frontier:
            voxel = frontier.pop()
            component.append(voxel)
            for step in product((-1, 0, 1), repeat=3):
                neighbour = tuple(i + d for i, d in zip(voxel, step, strict=True))
                if neighbour in waiting:
                    waiting.remove(neighbour)
                    frontier.append(neighbour)
        components.append(sorted(component))
    return components
