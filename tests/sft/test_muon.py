"""Muon: what moves how, against singular values and AdamW itself."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sft.muon import Muon, groups, orthogonalized

SIZES = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_directions_keep_singular_vectors_and_lose_singular_values(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = scale * torch.randn(2, rows, columns, generator=generator)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.mT @ orthogonalized(matrix) @ vh.mT
    inner = s / s.amax(-1, keepdim=True) > 0.05
    found = rotated.diagonal(dim1=-2, dim2=-1)[inner]
    assert found.min() > 0.5
    assert found.max() < 1.3
    aside = rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))
    assert aside.abs().max() < 1e-2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 8)])


def with_gradients(seed: int) -> Net:
    torch.manual_seed(seed)
    net = Net()
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net


def test_only_inner_matrices_leave_adamw() -> None:
    ours = with_gradients(0)
    theirs = copy.deepcopy(ours)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        other.grad = mine.grad.clone()
    Muon(groups(dict(ours.named_parameters()), 0.1, 0.3), lr=0.1, weight_decay=0.01).step()
    torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.01).step()
    other = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, other[name]) == (name not in {f"layers.{i}.weight" for i in range(3)})


def test_a_first_step_by_hand() -> None:
    """One singular value, which the norm makes 1; the quintic takes it to .701, 1.114, .721, 1.090 and .696.
    A 4 x 4 matrix then moves by .2 x 2 x lr times that."""
    net = with_gradients(1)
    matrix = net.layers[1].weight
    matrix.grad = torch.outer(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 4.0, 0.0]))
    before = matrix.detach().clone()
    Muon(groups(dict(net.named_parameters()), 0.1, 0.1), lr=0.1, weight_decay=0.0).step()
    moved = before - matrix.detach()
    assert moved[0, 1] / moved[0, 2] == pytest.approx(0.75, rel=1e-4)
    assert moved[0].norm() == pytest.approx(0.1 * 0.4 * 0.696, rel=1e-2)
    assert moved[1:].abs().max() < 1e-6


def test_its_state_is_kept_by_name() -> None:
    from gvcot import distributed

    def stepped(net: Net) -> Muon:
        optimizer = Muon(groups(dict(net.named_parameters()), 0.1, 0.1), lr=0.1)
        optimizer.step()
        return optimizer

    net, twin = with_gradients(2), with_gradients(2)
    first = stepped(net)
    second = Muon(groups(dict(twin.named_parameters()), 0.1, 0.1), lr=0.1)
    twin.load_state_dict(net.state_dict())
    distributed.load_full_optimizer_state(twin, second, distributed.full_optimizer_state(net, first))
    first.step()
    second.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
