"""The stages as large models run them: sharded, in bfloat16, with adapters, with recomputed activations."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.checkpoint import model_at
from experiments.launch import run_export, run_sft
from gvcot.errors import CheckpointError, ConfigError
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.pretrained import Pretrained, load_pretrained, read_history
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker, read_metrics
from sft.config import DataConfig, OptimConfig, SFTConfig
from sft.train import train

Make = Callable[..., SFTConfig]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def stage(config: Make, tmp_path: Path) -> SFTConfig:
    return config(
        mix={"gvcot": 0.6, "locate": 0.4},
        steps=3,
        batch_size=4,
        log_every=1,
        threads=1,
        optim=OptimConfig(lr=1e-3, warmup_steps=1, ema_decay=0.5),
        data=DataConfig(num_samples=16, cache_dir=str(tmp_path / "cache")),
    )


def run(stage: SFTConfig, path: Path, **changes: Any) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The logged steps and the exported weights."""
    stage = dataclasses.replace(stage, **changes)
    evaluated: list[int] = []

    def evaluate(policy: Pretrained, step: int) -> dict[str, float]:
        evaluated.append(step)
        return {"eval/weight": policy.model.llm2vae.bias.abs().mean().item()}

    folder = RunDir.open(path, stage, seed=0)
    with Tracker(folder.path, resume_step=folder.resume_step if folder.resumed else None) as tracker:
        train(stage, folder, tracker, evaluate)
    assert evaluated[-1] == stage.steps
    rows = [row for row in read_metrics(path) if "sft/loss" in row]
    return rows, load_pretrained(path / "final").model.state_dict()


def assert_alike(
    ours: tuple[list[dict[str, Any]], dict[str, torch.Tensor]],
    theirs: tuple[list[dict[str, Any]], dict[str, torch.Tensor]],
    rel: float,
) -> None:
    for mine, other in zip(ours[0], theirs[0], strict=True):
        for key in {"sft/loss", "sft/grad_norm", "sft/flow_mse", "sft/text_ce"} & other.keys():
            assert mine[key] == pytest.approx(other[key], rel=rel), (mine["step"], key)
    for name, value in theirs[1].items():
        torch.testing.assert_close(ours[1][name], value, rtol=rel, atol=rel / 10, msg=name)


def test_recomputed_activations_change_nothing(stage: SFTConfig, tmp_path: Path) -> None:
    plain = run(stage, tmp_path / "plain")
    recomputed = run(stage, tmp_path / "other", compute=ComputeConfig(activation_checkpointing=True))
    assert all(torch.equal(recomputed[1][name], value) for name, value in plain[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("recomputed", [False, True])
def test_sharded_workers_take_the_steps_of_one(stage: SFTConfig, tmp_path: Path, recomputed: bool) -> None:
    """With this seed every step has words, and at each step but one a worker has none."""
    stage = dataclasses.replace(stage, seed=8, batch_size=5, mix={"gvcot": 0.7, "locate": 0.3})
    compute = ComputeConfig(activation_checkpointing=recomputed)
    alone = run(stage, tmp_path / "alone")
    sharded = run(stage, tmp_path / "sharded", workers=2, sharding="fsdp2", compute=compute)
    assert_alike(sharded, alone, rel=1e-3)
    again = run(  # resumed after its last step
        stage, tmp_path / "sharded", workers=2, sharding="fsdp2", compute=compute
    )
    assert all(torch.equal(again[1][name], value) for name, value in sharded[1].items())


def test_bfloat16_is_near_and_its_master_weights_are_not_rounded(stage: SFTConfig, tmp_path: Path) -> None:
    exact = run(stage, tmp_path / "exact")
    rough = run(stage, tmp_path / "rough", sharding="fsdp2", compute=ComputeConfig(dtype="bfloat16"))
    for mine, other in zip(rough[0], exact[0], strict=True):
        assert mine["sft/loss"] == pytest.approx(other["sft/loss"], rel=0.02)
        assert mine["sft/loss"] != other["sft/loss"]
    weight = rough[1]["llm2vae.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize(
    "how",
    [{}, {"sharding": "fsdp2", "compute": ComputeConfig(dtype="bfloat16", activation_checkpointing=True)}],
)
def test_adapters_are_trained_and_a_plain_model_comes_out(
    stage: SFTConfig, policy_folder: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    before = load_pretrained(policy_folder).model.state_dict()
    _, after = run(stage, tmp_path / "run", lora=LoRAConfig(rank=2, also=("llm2vae",)), **how)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert all("_moe_gen.weight" in name or "llm2vae" in name or "mlp_moe_gen" in name for name in moved)
    assert any("q_proj_moe_gen" in name for name in moved)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {
            "lora": LoRAConfig(rank=2, also=("llm2vae",)),
            "sharding": "fsdp2",
            "compute": ComputeConfig(dtype="bfloat16"),
        },
    ],
)
def test_a_checkpoint_holds_what_the_run_would_export(
    stage: SFTConfig, policy_folder: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    _, after = run(stage, tmp_path / "run", save_every=2, **how)
    policy, record = model_at(tmp_path / "run")
    assert record["step"] == 3
    assert all(torch.equal(value, after[name]) for name, value in policy.model.state_dict().items())
    run_export(tmp_path / "run", tmp_path / "earlier", dtype="stored", step=2)
    earlier = load_pretrained(tmp_path / "earlier").model.state_dict()
    before = load_pretrained(policy_folder).model.state_dict()
    moved = [not torch.equal(earlier[name], value) for name, value in before.items()]
    still = [not torch.equal(earlier[name], value) for name, value in after.items()]
    assert any(moved)
    assert moved == still
    stages = read_history(tmp_path / "earlier")
    assert [s.get("step") for s in stages][-1] == 2
    assert stages[0]["made"] == "by tests"
    with pytest.raises(CheckpointError, match="complete ones are there of the steps 2, 3"):
        model_at(tmp_path / "run", 1)


def launched(command: list[str], folders: list[Path]) -> list[tuple[int, str]]:
    """`torchrun` of one process on each "machine", in its folder: exit codes and what was said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", f"--nnodes={len(folders)}"]
    launch += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    machines = [
        subprocess.Popen(
            [*launch, f"--node-rank={k}", "-m", "experiments.cli", *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for k, folder in enumerate(folders)
    ]
    try:
        said = [machine.communicate(timeout=600)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    return [(machine.returncode, words) for machine, words in zip(machines, said, strict=True)]


@pytest.mark.slow
def test_a_launcher_s_workers_on_several_machines_take_the_same_steps(
    policy_folder: Path, tmp_path: Path
) -> None:
    """And end where one of them does not see the run that goes on."""
    settings = [
        f"init={policy_folder}",
        f"codec={policy_folder}",
        "batch_size=4",
        "workers=2",
        "threads=1",
        "data.num_samples=null",
        "data.shard=4",
        "eval.num_samples=2",
        "eval.num_steps=2",
        "log_every=1",
    ]
    steps = [*settings, "steps=2"]
    here = run_sft("sft/tiny-stage2", steps, resume="auto", dry_run=False, run_dir=tmp_path / "here")
    assert here is not None
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    command = ["sft", "tiny-stage2", *settings, "--run-dir", "run"]
    for code, said in launched([*command, "steps=2"], [shared, shared]):
        assert code == 0, said
    there = load_pretrained(shared / "run" / "final").model.state_dict()
    for name, value in load_pretrained(here / "final").model.state_dict().items():
        assert torch.equal(there[name], value), name
    ours, theirs = (
        [row["sft/loss"] for row in read_metrics(folder) if "sft/loss" in row]
        for folder in (here, shared / "run")
    )
    assert ours == theirs
    (leader, _), (follower, said) = launched([*command, "steps=3"], [shared, other])
    assert "worker 1 is at step 0, another one than worker 0" in said
    assert leader != 0
    assert follower != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": LoRAConfig(), "train": "generation"}, "leave train out"),
        ({"compute": ComputeConfig(dtype="bfloat16")}, "set sharding=fsdp2"),
        ({"sharding": "fsdp2", "optim": OptimConfig(matrix_lr=1e-3)}, "Muon needs whole matrices"),
    ],
)
def test_what_does_not_go_together_is_refused(
    stage: SFTConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(stage, **changes)
