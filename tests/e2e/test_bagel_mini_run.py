"""SFT, RL and evaluation from a folder in BAGEL's format, through the shipped recipes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.evaluate import EvalRunConfig, evaluate_folder
from experiments.launch import run_rl, run_sft
from gvcot.model.parts import GENERATION_PARTS
from gvcot.model.pretrained import load_pretrained
from gvcot.tracking import read_metrics


@pytest.mark.slow
def test_from_bagel_s_folder_to_bagel_s_folder(bagel_mini: Path, tmp_path: Path) -> None:
    start = f"init={bagel_mini}", f"codec={bagel_mini}"
    small = "steps=2", "batch_size=2", "data.shard=4", "eval.num_samples=2", "eval.num_steps=2", "log_every=1"
    sft = tmp_path / "sft"
    run_sft("sft/bagel-mini-stage2", [*start, *small], resume="auto", dry_run=False, run_dir=sft)
    losses = [line["sft/loss"] for line in read_metrics(sft) if "sft/loss" in line]
    assert len(losses) == 2

    rl = tmp_path / "rl"
    small = "steps=1", "eval.num_samples=2", "images.vit={longest: 56, shortest: 56}"
    run_rl("rl/bagel-mini", [f"model={sft}/final", *small], resume="auto", dry_run=False, run_dir=rl)
    (step,) = [line for line in read_metrics(rl) if "policy/grad_norm" in line]
    assert step["policy/grad_norm"] > 0

    before, after = load_pretrained(bagel_mini), load_pretrained(rl / "final")
    for name, tensor in before.model.state_dict().items():
        is_trained = any(part in name for part in GENERATION_PARTS) and "pos_embed" not in name
        if not is_trained:
            assert torch.equal(tensor, after.model.state_dict()[name]), name
    moved = "language_model.model.layers.0.mlp_moe_gen.up_proj.weight"
    assert not torch.equal(before.model.state_dict()[moved], after.model.state_dict()[moved])
    for name in ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (rl / "final" / name).read_bytes() == (bagel_mini / name).read_bytes()
    assert all(torch.equal(v, after.codec.state_dict()[k]) for k, v in before.codec.state_dict().items())
    assert after.model.config.vit is not None
    assert after.model.config.vit.fit(64, 64) == (56, 56)  # as the recipe said
    metrics = evaluate_folder(
        rl / "final", EvalRunConfig(num_samples=2, num_steps=(1,), split="val", probes=(), threads=1)
    )
    assert "mask_iou" in metrics["val-1steps"]
