"""What travels between driver and workers arrives as it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from rollout.tensors import from_tensordict, table, to_tensordict


def test_a_trajectory_survives_the_round_trip(roll: Callable[..., Any]) -> None:
    rolled = roll()
    trajectory = rolled.drawn.trajectory
    rows = to_tensordict(trajectory, rolled.drawn.images)
    back = from_tensordict(rows, trajectory.condition, ("x_cot", "x_edit"))
    for before, after in zip(trajectory.phases, back.phases, strict=True):
        for field in fields(before):
            a, b = getattr(before, field.name), getattr(after, field.name)
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name


def test_rows_can_be_dealt_and_joined(roll: Callable[..., Any]) -> None:
    rolled = roll()
    rows = to_tensordict(rolled.drawn.trajectory, rolled.drawn.images)
    assert rows.batch_size == torch.Size([4])
    joined = torch.cat(rows.split(2))
    assert all(torch.equal(joined[key], rows[key]) for key in rows.keys())  # noqa: SIM118
    second = from_tensordict(rows[2:], rolled.drawn.trajectory.condition, ("x_cot", "x_edit"))
    assert torch.equal(second.phases[1].final_BND, rolled.drawn.trajectory.phases[1].final_BND[2:])


def test_columns_of_a_prefix_by_name(roll: Callable[..., Any]) -> None:
    rolled = roll()
    rows = to_tensordict(rolled.drawn.trajectory, rolled.drawn.images)
    images = table(rows, "images")
    assert sorted(images) == ["x_cot", "x_edit"]
    assert torch.equal(images["x_edit"], rolled.drawn.images["x_edit"])
