"""A supervised stage trains what it should, and a stopped one goes on bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gvcot import distributed
from gvcot.data.encoded import EncodedScenes
from gvcot.data.stream import Epochs
from gvcot.errors import ResourceError
from gvcot.model.pretrained import Pretrained, load_pretrained
from gvcot.model.sequence import pack
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker, read_metrics
from sft.config import DataConfig, EvalConfig, ModelConfig, OptimConfig, SFTConfig
from sft.loss import joint_loss
from sft.stages import BatchBuilder
from sft.train import averaged, new_state, starting_point, train, training_step

Make = Callable[..., SFTConfig]


def builder_of(stage: SFTConfig, policy: Pretrained, encoded: EncodedScenes) -> BatchBuilder:
    feed = Epochs(encoded, stage.batch_size, stage.seed)
    return BatchBuilder(stage, policy.model.config, feed, policy.tokenizer)


@torch.no_grad()
def loss_on(policy: Pretrained, builder: BatchBuilder, steps: range) -> float:
    losses = []
    for step in steps:
        batch = builder.batch(step)
        losses.append(
            joint_loss(policy.model(pack(batch.samples, policy.model.config)), batch.target_MD, 0.25)[
                0
            ].item()
        )
    return sum(losses) / len(losses)


def test_the_loss_falls_on_a_few_scenes(policy: Pretrained, encoded: EncodedScenes, config: Make) -> None:
    stage = config(steps=60, optim=OptimConfig(lr=5e-3, warmup_steps=5), mix={"gvcot": 0.8, "describe": 0.2})
    builder = builder_of(stage, policy, encoded)
    held_back = range(1000, 1008)  # other times and noise of the same scenes
    before = loss_on(policy, builder, held_back)
    state = new_state(stage, policy.model)
    for _ in range(60):
        training_step(stage, builder, state)
    assert loss_on(policy, builder, held_back) < 0.9 * before
    with averaged(state):
        assert loss_on(policy, builder, held_back) < 0.95 * before


def test_stage_1_moves_the_generation_expert_alone(
    policy: Pretrained, encoded: EncodedScenes, config: Make
) -> None:
    stage = config(train="generation", mix={"mask": 0.5, "direct": 0.5}, optim=OptimConfig(weight_decay=0.1))
    before = {n: p.detach().clone() for n, p in policy.model.named_parameters()}
    state = new_state(stage, policy.model)
    builder = builder_of(stage, policy, encoded)
    for _ in range(2):
        training_step(stage, builder, state)
    moved = {n for n, p in policy.model.named_parameters() if not torch.equal(before[n], p)}
    assert moved == set(state.parameters)
    assert all(any(part in n for part in ("_moe_gen", "vae2llm", "llm2vae", "time_embedder")) for n in moved)
    assert "language_model.model.layers.0.self_attn.q_proj_moe_gen.weight" in moved


def test_a_new_model_is_a_function_of_the_seed(config: Make) -> None:
    stage = config(init=None, model=ModelConfig(hidden=32, layers=1, codec_width=8))
    one, two = (starting_point(stage).model.state_dict() for _ in range(2))
    other = starting_point(config(init=None, model=stage.model, seed=1)).model.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["vae2llm.weight"], other["vae2llm.weight"])


def test_a_loss_that_is_not_finite_stops_the_run(
    policy: Pretrained, encoded: EncodedScenes, config: Make
) -> None:
    stage = config()
    with torch.no_grad():
        policy.model.llm2vae.bias.fill_(torch.inf)
    builder = builder_of(stage, policy, encoded)
    with pytest.raises(RuntimeError, match=r"at step 0: lower optim\.lr"):
        training_step(stage, builder, new_state(stage, policy.model))


class PowerCut(Exception):
    """Ends a run in the middle."""


def run_stage(path: Path, config: SFTConfig, cut_at: int | None = None) -> dict[str, float]:
    def evaluate(policy: Pretrained, step: int) -> dict[str, float]:
        if step == cut_at:
            raise PowerCut
        return {"eval/weight": policy.model.llm2vae.weight.abs().mean().item()}

    run = RunDir.open(path, config, seed=config.seed)
    with Tracker(path, resume_step=run.resume_step if run.resumed else None) as tracker:
        return train(config, run, tracker, evaluate)


@pytest.mark.parametrize(
    ("num_samples", "matrix_lr"),
    [(16, None), (16, 1e-3), (None, None)],  # without end: two shards, stopped amid the first
)
def test_a_stopped_stage_goes_on_bit_for_bit(
    config: Make, cache_dir: str, tmp_path: Path, num_samples: int | None, matrix_lr: float | None
) -> None:
    stage = config(
        mix={"gvcot": 0.6, "describe": 0.2, "locate": 0.2},  # with two rows, some steps have no text
        batch_size=2,
        steps=6,
        save_every=2,
        log_every=1,
        threads=1,
        optim=OptimConfig(matrix_lr=matrix_lr),
        data=DataConfig(num_samples=num_samples, cache_dir=cache_dir, shard=3, reuse=2),
        eval=EvalConfig(every=3),
    )
    straight = run_stage(tmp_path / "straight", stage)
    with pytest.raises(PowerCut):
        run_stage(tmp_path / "cut", stage, cut_at=3)
    assert (tmp_path / "cut" / "checkpoints" / "latest").read_text() == "step_2"
    resumed = run_stage(tmp_path / "cut", stage)
    assert resumed == straight

    weights = [(tmp_path / run / "final" / "ema.safetensors").read_bytes() for run in ("straight", "cut")]
    assert weights[0] == weights[1]
    states = [
        (tmp_path / run / "checkpoints/step_6/state.safetensors").read_bytes() for run in ("straight", "cut")
    ]
    assert states[0] == states[1]

    def logged(run: str) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in line.items() if not k.startswith("time/")}
            for line in read_metrics(tmp_path / run)
        ]

    assert logged("cut") == logged("straight")
    assert [line["step"] for line in logged("cut") if "sft/loss" in line] == [1, 2, 3, 4, 5, 6]
    record = json.loads((tmp_path / "cut" / "final" / "record.json").read_text())
    assert record["metrics"] == straight
    load_pretrained(tmp_path / "cut" / "final")


def test_the_paper_s_stages_follow_each_other(
    config: Make, policy_folder: Path, cache_dir: str, tmp_path: Path
) -> None:
    plain: dict[str, Any] = {
        "steps": 2,
        "batch_size": 2,
        "threads": 1,
        "data": DataConfig(num_samples=8, cache_dir=cache_dir),
        "optim": OptimConfig(warmup_steps=1, ema_decay=0.0),
    }
    first = config(train="generation", mix={"mask": 0.7, "direct": 0.3}, **plain)
    run_stage(tmp_path / "one", first)
    second = config(init=str(tmp_path / "one" / "final"), **plain)
    run_stage(tmp_path / "two", second)
    run_stage(tmp_path / "two", second)  # resumed after its last step: the same result again
    paths = (policy_folder, tmp_path / "one" / "final", tmp_path / "two" / "final")
    start, one, two = (load_pretrained(path).model.state_dict() for path in paths)
    seen, drawn = "language_model.model.layers.0.mlp.up_proj.weight", "llm2vae.weight"
    assert torch.equal(start[seen], one[seen])
    assert not torch.equal(start[drawn], one[drawn])
    assert not torch.equal(one[seen], two[seen])


def test_two_workers_take_the_steps_of_one(config: Make, tmp_path: Path) -> None:
    """Shares are uneven on purpose: the mix leaves a worker without words at times, and batches are odd."""
    stage = config(
        mix={"gvcot": 0.5, "direct": 0.2, "locate": 0.3},
        steps=4,
        batch_size=5,
        log_every=1,
        save_every=2,
        threads=1,
        optim=OptimConfig(matrix_lr=1e-3),
        data=DataConfig(num_samples=16, cache_dir=str(tmp_path / "cache")),
    )
    logs, weights = [], []
    for workers in (1, 2):
        run = RunDir.open(tmp_path / str(workers), stage, seed=0)
        with Tracker(run.path) as tracker:
            train(
                dataclasses.replace(stage, workers=workers), run, tracker, lambda model, step: {"done": 1.0}
            )
        logs.append([row for row in read_metrics(run.path) if "sft/loss" in row])
        weights.append(load_pretrained(run.path / "final").model.state_dict())
    for alone, shared in zip(*logs, strict=True):
        for key in ("sft/loss", "sft/grad_norm", "sft/flow_mse"):
            assert shared[key] == pytest.approx(alone[key], rel=1e-4), key
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5, msg=name)


def test_a_stream_reaches_all_workers(config: Make, tmp_path: Path) -> None:
    stage = config(steps=2, threads=1, workers=2, log_every=1, data=DataConfig(num_samples=None, shard=8))
    run = RunDir.open(tmp_path / "run", stage, seed=0)
    with Tracker(run.path) as tracker:
        train(stage, run, tracker, lambda model, step: {"done": 1.0})
    alone = RunDir.open(tmp_path / "alone", stage, seed=0)
    with Tracker(alone.path) as tracker:
        train(dataclasses.replace(stage, workers=1), alone, tracker, lambda model, step: {"done": 1.0})
    for shared, single in zip(read_metrics(run.path), read_metrics(alone.path), strict=True):
        if "sft/loss" in shared:
            assert shared["sft/loss"] == pytest.approx(single["sft/loss"], rel=1e-4)


def test_a_worker_that_dies_is_told() -> None:
    with pytest.raises(ResourceError, match="exit code 1"), distributed.team(2, os._exit, 1):
        distributed.totals([1.0])


@pytest.mark.parametrize("matrix_lr", [None, 0.0, 1e-2])
def test_learning_rates_of_matrices_and_of_the_rest_are_their_own(
    policy: Pretrained, encoded: EncodedScenes, config: Make, matrix_lr: float | None
) -> None:
    stage = config(optim=OptimConfig(lr=0.0, matrix_lr=matrix_lr, warmup_steps=1))
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    training_step(stage, builder_of(stage, policy, encoded), new_state(stage, policy.model))
    moved = {name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}
    if matrix_lr:
        assert moved
        assert all("layers." in name and before[name].ndim == 2 for name in moved)
    else:
        assert not moved
