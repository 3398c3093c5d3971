"""Import torchvision where its compiled operators do not load.

A torchvision built against another flavour of torch fails at import, because two operators that its
Python part refers to were never registered. Declaring their schemas first is enough for every
network in it. Where torchvision loads by itself, this module does nothing else than import it.
"""

from __future__ import annotations

import torch

try:
    import torchvision
except (RuntimeError, OSError):
    # The definitions live as long as this object does.
    _schemas = torch.library.Library("torchvision", "DEF")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

from torchvision.ops.misc import FrozenBatchNorm2d

__all__ = ["FrozenBatchNorm2d", "torchvision"]
