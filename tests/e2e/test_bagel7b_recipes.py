"""The BAGEL-7B recipes as they are shipped, one after the other, on BAGEL's layout at its smallest.

Sharding, bfloat16, recomputed activations, adapters, resized image pairs and a judge at once, as eight GPUs
would run them; here on two processes without any.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.evaluate import EvalRunConfig, evaluate_folder
from experiments.launch import run_export, run_rl, run_sft
from gvcot.data import scenes
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.pairs.write import write
from gvcot.model.parts import GENERATION_PARTS
from gvcot.model.pretrained import load_pretrained, read_history
from gvcot.tracking import read_metrics
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig

pytestmark = pytest.mark.slow

SIZE = 64
VIT_WEIGHT = "vit_model.vision_model.encoder.layers.0.mlp.fc1.weight"
SFT = (
    "device=cpu",
    "workers=2",
    "threads=1",
    "steps=2",
    "batch_size=4",
    "log_every=1",
    f"model.image_size={SIZE}",
    "data.shard=4",
    "eval.num_samples=2",
    "eval.num_steps=2",
)
RL = (
    "cluster.num_workers=2",
    "cluster.gpus_per_worker=0",
    "steps=2",
    "prompts_per_step=2",
    "group_size=3",
    f"data.size={SIZE}",
    "rollout.num_steps=4",
    "rollout.window_range=[0,3]",
    "eval.num_samples=2",
    "eval.num_steps=2",
    "rewards.judge.options.cache=null",
    "max_missing_share=1.0",  # an untrained codec hides edits, which leaves rewards without a score
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Pairs of more pixels than the model is trained with."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    write((scenes.generate(0, i, split="train", size=96) for i in range(8)), folder, "webdataset")
    return str(folder)


@pytest.fixture(scope="module")
def judge() -> Iterator[str]:
    with running(ScenesJudgeConfig(size=SIZE, source_tolerance=1.0)) as base_url:  # whatever the codec does
        yield base_url


@pytest.fixture(scope="module")
def stages(bagel_mini: Path, pairs: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of both stages."""
    one, two = (tmp_path_factory.mktemp("sft") / name for name in ("one", "two"))
    data = f"data.pairs.path={pairs}", f"eval.pairs.path={pairs}"
    for recipe, folder, start in (
        ("bagel7b-stage1", one, bagel_mini),
        ("bagel7b-stage2", two, one / "final"),
    ):
        settings = [*SFT, *data, f"init={start}", f"codec={start}"]
        run_sft(f"sft/{recipe}", settings, resume="auto", dry_run=False, run_dir=folder)
    return one, two


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_pretrained(folder).model.state_dict()


def moved(before: Path, after: Path) -> set[str]:
    one, other = weights(before), weights(after)
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def rl(
    recipe: str, start: Path, folder: Path, pairs: str, judge: str, *overrides: str
) -> list[dict[str, Any]]:
    """The training steps' lines, without clock times and memory."""
    endpoint = {"base_url": judge, "model": "scenes-judge", "send_metadata": True}
    settings = [
        *RL,
        f"model={start}",
        f"data.pairs.path={pairs}",
        f"eval.pairs.path={pairs}",
        f"rewards.judge.options.endpoints={json.dumps([endpoint])}",
        *overrides,
    ]
    run_rl(f"rl/{recipe}", settings, resume="auto", dry_run=False, run_dir=folder)
    lines = [line for line in read_metrics(folder) if "policy/grad_norm" in line]
    assert lines[0]["reward_missing/judge"] == 0
    varying = ("time/", "policy/peak_memory")
    return [{k: v for k, v in line.items() if not k.startswith(varying)} for line in lines]


def test_stages(bagel_mini: Path, stages: tuple[Path, Path]) -> None:
    one, two = stages
    for folder in stages:
        losses = [line["sft/loss"] for line in read_metrics(folder) if "sft/loss" in line]
        assert len(losses) == 2
    first = moved(bagel_mini, one / "final")
    assert first
    assert all(any(part in name for part in GENERATION_PARTS) for name in first)
    second = moved(one / "final", two / "final")
    understanding = "language_model.model.layers.0.self_attn.q_proj.weight"
    assert {understanding, "connector.fc1.weight", VIT_WEIGHT} <= second
    assert [stage["config"]["name"] for stage in read_history(two / "final")][-2:] == [
        "bagel7b-stage1",
        "bagel7b-stage2",
    ]


def test_adapters(stages: tuple[Path, Path], pairs: str, judge: str, tmp_path: Path) -> None:
    """In one go, and once more interrupted after its first step."""
    start, folder = stages[1] / "final", tmp_path / "lora"
    what = "bagel7b-grpo-lora-8xh100", start
    straight = rl(*what, folder, pairs, judge)
    rl(*what, tmp_path / "resumed", pairs, judge, "steps=1")
    resumed = rl(*what, tmp_path / "resumed", pairs, judge)
    assert [line["step"] for line in resumed] == [1, 2]
    assert resumed == straight
    last = straight[-1]
    assert last["policy/grad_norm"] > 0
    assert last["policy/x_cot/velocity_kl"] > 0  # to the model without its adapters
    assert all(last[f"rollout/{phase}/logprob_gap"] < 1e-4 for phase in ("x_cot", "x_edit"))
    names = moved(start, folder / "final")
    assert names
    assert all("_moe_gen" in name for name in names)

    metrics = evaluate_folder(
        folder / "final",
        EvalRunConfig(
            num_samples=2,
            num_steps=(2,),
            size=SIZE,
            dtype="bfloat16",
            pairs=PairsConfig(path=pairs, resize="square"),
            probes=(),
            threads=1,
        ),
    )
    assert all("mask_iou" in values for values in metrics.values())
    run_export(folder, tmp_path / "out", dtype="bf16", step=2)
    exported = load_pretrained(tmp_path / "out", dtype=None).model.state_dict()
    kept = weights(folder / "final")
    assert all(torch.equal(value, kept[name].bfloat16()) for name, value in exported.items())


def test_full(stages: tuple[Path, Path], pairs: str, judge: str, tmp_path: Path) -> None:
    """With a second, sharded model as the anchor."""
    start, folder = stages[1] / "final", tmp_path / "full"
    last = rl("bagel7b-grpo-full", start, folder, pairs, judge)[-1]
    assert last["policy/x_cot/velocity_kl"] > 0
    names = moved(start, folder / "final")
    assert names
    assert all(any(part in name for part in GENERATION_PARTS) for name in names)
