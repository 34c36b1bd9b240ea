"""torchvision beside a CPU build of torch, in vLLM's environment.

`make vllm` copies this file and gvcot_torchvision.pth into site-packages, because vLLM starts interpreters of
its own: there, `import torchvision` first declares the operators that its wheel lacks on the CPU (see
gvcot/torchvision_cpu.py, which does the same for the trainer).
"""

import importlib.abc
import sys

_kept = []


class _DeclareFirst(importlib.abc.MetaPathFinder):
    """Steps in front of the import of torchvision once, and finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare()


def _declare():
    import torch

    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _kept.append(library)  # its operators live as long as it does


sys.meta_path.insert(0, _DeclareFirst())
