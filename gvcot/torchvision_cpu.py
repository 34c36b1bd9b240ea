"""torchvision beside a CPU build of torch.

The torchvision wheels of the package index are built for CUDA: on a CPU-only torch their C++ operators do not
load, and `import torchvision` (through transformers, verl, open_clip) dies registering fake kernels for them.
Declaring the two operators first lets its pure-Python parts work; calling `nms` itself stays an error.
"""

from __future__ import annotations

import torch

_OPERATORS = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None


def declare_missing_operators() -> None:
    """Call before anything imports torchvision. Does nothing where torch has CUDA, or on a second call."""
    global _library
    if _library is not None or torch.version.cuda is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        _library.define(name + _SIGNATURE)
