"""Loss, schedule and moving average against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from gvcot.model.unified import Prediction
from sft.config import OptimConfig
from sft.ema import EMA
from sft.loss import joint_loss
from sft.schedule import learning_rate

NO_TEXT = {"text_logits": torch.zeros(0, 3), "text_targets": torch.zeros(0, dtype=torch.int64)}


def test_the_flow_loss_is_the_mean_squared_error_over_values_and_tokens() -> None:
    velocity = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    target = torch.tensor([[0.0, 0.0], [0.0, 1.0]])  # squares 1, 4, 0, 4
    loss, parts = joint_loss(Prediction(velocity_MD=velocity, **NO_TEXT), target, ce_weight=0.25)
    assert loss.item() == pytest.approx(9 / 4)
    assert parts == {"flow_mse": pytest.approx(9 / 4)}


def test_an_image_s_weight_scales_its_tokens_and_leaves_the_others_alone() -> None:
    velocity = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [0.0, 1.0]])  # squares 1, 4, 0, 4
    prediction = Prediction(velocity_MD=velocity, **NO_TEXT)
    for weight, expected in ((0.0, 4 / 4), (0.5, (2.5 + 4) / 4), (1.0, 9 / 4)):
        velocity.grad = None
        loss, parts = joint_loss(prediction, target, 0.25, torch.tensor([weight, 1.0]))
        assert loss.item() == pytest.approx(expected)
        assert parts == {"flow_mse": pytest.approx(9 / 4)}  # unweighted: arms can be compared
        loss.backward()
        assert velocity.grad is not None
        assert velocity.grad.tolist() == [pytest.approx([weight * 0.5, weight]), pytest.approx([0.0, -1.0])]


def test_text_adds_its_weighted_cross_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2.0), 0.0, 0.0]])  # p = 1/3, then 1/2
    prediction = Prediction(
        velocity_MD=torch.ones(1, 2), text_logits=logits, text_targets=torch.tensor([2, 0])
    )
    loss, parts = joint_loss(prediction, torch.zeros(1, 2), ce_weight=0.5)
    ce = (math.log(3) + math.log(2)) / 2
    assert parts["text_ce"] == pytest.approx(ce)
    assert loss.item() == pytest.approx(1.0 + 0.5 * ce)


def test_a_batch_of_text_alone_has_no_flow_loss() -> None:
    prediction = Prediction(
        velocity_MD=torch.zeros(0, 2), text_logits=torch.zeros(1, 4), text_targets=torch.tensor([1])
    )
    loss, parts = joint_loss(prediction, torch.zeros(0, 2), ce_weight=1.0)
    assert loss.item() == pytest.approx(math.log(4))
    assert list(parts) == ["text_ce"]


def test_the_learning_rate_rises_linearly_and_falls_by_a_cosine() -> None:
    optim = OptimConfig(lr=2.0, warmup_steps=4, final_lr_share=0.1)
    assert [learning_rate(optim, k, 14) for k in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert learning_rate(optim, 4, 14) == pytest.approx(2.0)
    assert learning_rate(optim, 9, 14) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert learning_rate(optim, 14, 14) == pytest.approx(0.2)
    assert learning_rate(OptimConfig(lr=2.0, warmup_steps=0), 0, 10) == pytest.approx(2.0)


def test_the_average_s_decay_warms_up() -> None:
    average = EMA({"w": torch.tensor([1.0])}, decay=0.15)
    average.update({"w": torch.tensor([2.0])})  # decay 1/10: 0.1 * 1 + 0.9 * 2
    assert average.weights["w"].item() == pytest.approx(1.9)
    average.update({"w": torch.tensor([3.0])})  # 2/11 exceeds 0.15: 0.15 * 1.9 + 0.85 * 3
    assert average.weights["w"].item() == pytest.approx(0.15 * 1.9 + 0.85 * 3)


def test_the_average_copies_what_it_is_given() -> None:
    weight = torch.tensor([1.0])
    average = EMA({"w": weight}, decay=0.5)
    weight += 1
    assert average.weights["w"].item() == 1.0
