"""Numerics of the method: torch in, torch out; imports nothing of ours.

timm imports torchvision, and the torchvision wheel on the package index is built for CUDA: beside a
CPU build of torch its operator library cannot be loaded, and ``import torchvision`` then fails on
the two operators that it only describes. Declaring their schemas first is enough; nothing here
calls them.
"""

from importlib.util import find_spec

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []


def _declare_torchvision_schemas() -> None:
    """Declare torchvision's two operators, only where its own library cannot register them."""
    found = find_spec("torchvision")
    if found is None or not found.submodule_search_locations or _declared:
        return
    try:
        torch.ops.load_library(f"{found.submodule_search_locations[0]}/_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            library.define(schema)
        _declared.append(library)  # the registration lives as long as this object


_declare_torchvision_schemas()
