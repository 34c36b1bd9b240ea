"""Two workers that share a model compute what one worker computes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gvcot import distributed
from gvcot.checkpoint import load_state, save_state
from gvcot.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8


class TinyPolicy(nn.Module):
    """Two blocks and a head of odd sizes, with a frozen part, used through `velocity` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.head = nn.Linear(5, 3)
        self.head.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).tanh()
        return self.head(x)

    def velocity(self, x: Tensor) -> Tensor:
        return self.forward(x) * 2


def build() -> tuple[TinyPolicy, torch.Tensor]:
    torch.manual_seed(0)
    return TinyPolicy(), torch.randn(BATCH, 5)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, num_workers: int) -> float:
    optimizer.zero_grad()
    # FSDP averages gradients over workers; the loss is a mean over the whole batch
    loss = model.velocity(x).square().sum() / BATCH * num_workers
    loss.backward()
    norm = distributed.clip_gradients(model.parameters(), max_norm=0.5)
    optimizer.step()
    return norm


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    return {
        "model": distributed.full_state_dict(model),
        "optimizer": distributed.full_optimizer_state(model, optimizer),
    }


def worker(out: Path) -> None:
    """What both processes do: two steps, save, load into a fresh model, one more step on either."""
    mesh = distributed.init_process_group("cpu")
    rank = mesh.get_rank()

    model, x = build()
    x = x.chunk(2)[rank]
    distributed.shard(model, mesh, model.blocks, forward_methods=["velocity"])
    optimizer = optimizer_of(model)
    norms = [train_step(model, optimizer, x, 2) for _ in range(2)]

    state = state_of(model, optimizer)
    assert bool(state["model"]) == (rank == 0), "only rank 0 holds the gathered state"
    if rank == 0:
        save_state(out / "two", state, {"norms": norms})
    torch.distributed.barrier()

    torch.manual_seed(1)
    resumed = TinyPolicy()
    distributed.shard(resumed, mesh, resumed.blocks, forward_methods=["velocity"])
    fresh = optimizer_of(resumed)
    tensors, _ = load_state(out / "two")
    distributed.load_full_state_dict(resumed, tensors["model"])
    distributed.load_full_optimizer_state(resumed, fresh, tensors["optimizer"])
    with torch.no_grad(), distributed.gathered(resumed):  # sampling comes before the first training step
        for _ in range(1 + rank):  # once gathered, workers may call unequally often
            sampled = resumed.velocity(x)
    for policy, opt in ((model, optimizer), (resumed, fresh)):
        train_step(policy, opt, x, 2)
    straight, again = state_of(model, optimizer), state_of(resumed, fresh)
    for name, value in straight["model"].items():
        assert torch.equal(value, again["model"][name]), f"resuming changed {name}"

    if rank == 0:
        save_state(out / "three", straight | {"sampled": sampled}, {})
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_two_workers(out: Path) -> None:
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(out)],
            env=env | {"RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in workers:
        _, errors = process.communicate(timeout=90)
        assert process.returncode == 0, errors


def test_two_sharded_workers_train_like_one_and_resume_exactly(tmp_path: Path):
    run_two_workers(tmp_path)

    model, x = build()
    optimizer = optimizer_of(model)
    norms = [train_step(model, optimizer, x, 1) for _ in range(2)]
    saved, meta = load_state(tmp_path / "two")
    assert meta["norms"] == pytest.approx(norms, rel=1e-5)
    assert max(norms) > 0.5  # clipping was at work
    torch.testing.assert_close(saved["model"], dict(model.state_dict()), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        saved["optimizer"], distributed.full_optimizer_state(model, optimizer), atol=1e-6, rtol=0
    )
    assert "head.bias" not in saved["optimizer"]

    third, _ = load_state(tmp_path / "three")
    with torch.no_grad():
        torch.testing.assert_close(third["sampled"], model.velocity(x.chunk(2)[0]), atol=1e-6, rtol=0)
    train_step(model, optimizer, x, 1)
    torch.testing.assert_close(third["model"], dict(model.state_dict()), atol=1e-6, rtol=0)


def test_a_state_of_another_model_is_refused_and_changes_nothing():
    model, _ = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = distributed.full_state_dict(model)
    wrong = {k: v + 1 for k, v in state.items() if k != "head.bias"} | {"extra": torch.ones(1)}
    wrong["head.weight"] = torch.ones(2, 2)
    with pytest.raises(CheckpointError, match=r"missing \['head.bias'\], unknown \['extra'\]"):
        distributed.load_full_state_dict(model, wrong)
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


def test_optimizer_state_of_a_frozen_parameter_is_refused():
    model, _ = build()
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        distributed.load_full_optimizer_state(
            model, optimizer_of(model), {"head.bias": {"step": torch.tensor(1.0)}}
        )


def test_gathered_state_is_a_copy():
    model, x = build()
    state = distributed.full_state_dict(model)
    before = {k: v.clone() for k, v in state.items()}
    train_step(model, optimizer_of(model), x, 1)
    torch.testing.assert_close(state, before, atol=0, rtol=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    worker(Path(sys.argv[1]))
