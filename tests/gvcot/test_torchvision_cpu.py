"""torchvision can be imported beside a CPU build of torch."""

from __future__ import annotations

import torch

from gvcot.torchvision_cpu import declare_missing_operators


def test_torchvision_imports_and_declaring_twice_is_harmless() -> None:
    declare_missing_operators()
    declare_missing_operators()
    from torchvision.transforms import functional

    assert functional.resize(torch.zeros(1, 3, 8, 8), [4, 4]).shape == (1, 3, 4, 4)
