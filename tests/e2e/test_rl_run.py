"""Whole RL runs: real workers on a very small model, from the recipe to the report."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from experiments.bootstrap import compare
from experiments.launch import run_export, run_rl
from gvcot.data import scenes
from gvcot.data.pairs.write import write
from gvcot.errors import ResourceError
from gvcot.model.pretrained import find_model, load_pretrained
from gvcot.tracking import read_metrics

STEPS = 3
ROOT = Path(__file__).parents[2]


def run(folder: Path, policy_folder: Path, *overrides: str) -> Path:
    settings = [
        f"model={policy_folder}",
        "prompts_per_step=2",
        "group_size=3",
        "rollout.num_steps=4",
        "rollout.window_range=[0,3]",
        "optim.lr=1e-3",
        "optim.warmup_steps=2",
        "eval.num_samples=4",
        "eval.every=0",
        "panel_every=1",
        "max_missing_share=1.0",  # a random codec hides some of the smallest edits
        *overrides,
    ]
    out = run_rl("rl/tiny", settings, resume="auto", dry_run=False, run_dir=folder)
    assert out == folder
    return folder


@pytest.fixture(scope="module")
def straight(policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps with two workers."""
    return run(tmp_path_factory.mktemp("rl") / "straight", policy_folder, f"steps={STEPS}")


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a training step logged, without clock times and memory."""
    logged = [line for line in read_metrics(folder) if "policy/loss" in line]
    varying = ("time/", "policy/peak_memory")
    return [{k: v for k, v in line.items() if not k.startswith(varying)} for line in logged]


@pytest.mark.slow
def test_every_step_is_logged_once_and_evaluated_before_and_after(straight: Path) -> None:
    assert [line["step"] for line in lines(straight)] == [1, 2, 3]
    evaluated = [line for line in read_metrics(straight) if "eval/mask_iou" in line]
    assert [line["step"] for line in evaluated] == [0, STEPS]
    last = lines(straight)[-1]
    for name in ("mask_iou", "edit_accuracy", "preservation", "format"):
        assert f"reward/{name}" in last
    assert last["policy/skipped"] == 0.0
    assert last["policy/grad_norm"] > 0.0
    assert last["policy/x_cot/error"] > 0.0
    assert last["policy/x_cot/velocity_kl"] > 0.0
    assert last["canary/unedited/edit_accuracy"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.slow
def test_the_replay_of_stochastic_steps_agrees_with_the_rollout(policy_folder: Path, tmp_path: Path) -> None:
    (line,) = lines(run(tmp_path / "window", policy_folder, "steps=1", "objective=reverse_window"))
    for phase in ("x_cot", "x_edit"):
        assert line[f"rollout/{phase}/logprob_gap"] < 1e-5
        assert line[f"policy/{phase}/ratio_max"] == pytest.approx(1.0)


@pytest.mark.slow
def test_the_result_is_a_model_that_has_moved(straight: Path, policy_folder: Path) -> None:
    before, after = load_pretrained(policy_folder), load_pretrained(find_model(straight))
    start, final = before.model.state_dict(), after.model.state_dict()
    assert all(value.isfinite().all() for value in final.values())
    assert not torch.equal(start["llm2vae.weight"], final["llm2vae.weight"])
    codecs = before.codec.state_dict(), after.codec.state_dict()
    assert all(torch.equal(codecs[0][k], codecs[1][k]) for k in codecs[0])
    record = json.loads((straight / "final" / "record.json").read_text())
    assert record["config"]["steps"] == STEPS
    assert "eval/mask_iou" in record["metrics"]


@pytest.mark.slow
def test_a_checkpoint_holds_what_the_run_exported(straight: Path, tmp_path: Path) -> None:
    run_export(straight, tmp_path / "out", dtype="stored", step=STEPS)
    ours, theirs = load_pretrained(tmp_path / "out").model, load_pretrained(straight / "final").model
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.slow
def test_workers_on_two_machines_take_the_same_steps(
    straight: Path, policy_folder: Path, two_machines: str, tmp_path: Path
) -> None:
    where = f"cluster.address={two_machines}", "cluster.num_nodes=2"
    spread = run(tmp_path / "spread", policy_folder, f"steps={STEPS}", *where)
    assert lines(spread) == lines(straight)


@pytest.mark.slow
def test_a_run_can_be_looked_at(straight: Path) -> None:
    assert "<html" in (straight / "report.html").read_text()
    events = EventAccumulator(str(straight / "tb"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"reward/mask_iou", "eval/mask_iou", "policy/x_cot/error", "time/step"} <= set(tags["scalars"])
    assert {"rollout/chains", "eval/val"} <= set(tags["images"])
    assert [e.step for e in events.Scalars("reward/mask_iou")] == [1, 2, 3]
    assert [e.step for e in events.Images("rollout/chains")] == [1, 2, 3]
    assert (straight / "images" / "rollout-chains.step_2.png").is_file()
    table = pq.read_table(straight / "rollouts" / "step_2.parquet").to_pydict()
    assert len(table["mask_iou"]) == 6
    assert np.mean(table["mask_iou"]) == pytest.approx(lines(straight)[1]["reward/mask_iou"], abs=1e-5)
    before, after = (straight / "evals" / f"val.step_{step}.json" for step in (0, STEPS))
    assert "mask_iou" in compare(before, after, ["mask_iou"])


@pytest.mark.slow
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(
    straight: Path, policy_folder: Path, tmp_path: Path
) -> None:
    resumed = run(tmp_path / "resumed", policy_folder, "steps=2")
    assert [line["step"] for line in lines(resumed)] == [1, 2]
    run(resumed, policy_folder, f"steps={STEPS}")
    assert lines(resumed) == lines(straight)
    for name in ("final/ema.safetensors", f"checkpoints/step_{STEPS}/state.safetensors"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes(), name
    assert sorted(p.name for p in (resumed / "checkpoints").glob("step_*")) == ["step_2", "step_3"]


@pytest.mark.slow
def test_one_worker_computes_what_two_do(straight: Path, policy_folder: Path, tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", policy_folder, "steps=1", "cluster.num_workers=1")
    one, two = lines(alone)[0], lines(straight)[0]
    assert one.keys() == two.keys()
    for name in ("reward/mask_iou", "reward/preservation", "reward/format"):
        assert one[name] == pytest.approx(two[name], abs=0.02), name
    assert one["policy/grad_norm"] == pytest.approx(two["policy/grad_norm"], rel=0.05)
    assert all(v is None or math.isfinite(v) for v in one.values())


@pytest.mark.slow
def test_reward_workers_score_what_policy_workers_would(policy_folder: Path, tmp_path: Path) -> None:
    settings = ("steps=2", "cluster.num_workers=1", "prompts_per_step=4")
    inline = lines(run(tmp_path / "inline", policy_folder, *settings))
    workers = ("reward_workers.num_workers=1", "reward_workers.chunks=2")
    overlapped = lines(run(tmp_path / "overlapped", policy_folder, *settings, *workers))
    for one, other in zip(inline, overlapped, strict=True):
        own = {name for name in other if name.startswith("reward_worker/")}
        assert own == {f"reward_worker/{name}" for name in ("queue_depth", "busy", "chains_per_second")}
        assert other.keys() - own == one.keys()
        for name in one:
            assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-5), name


@pytest.mark.slow
def test_an_alarm_ends_the_run_as_its_last_step_would(policy_folder: Path, tmp_path: Path) -> None:
    alarm = "{metric: canary/unedited/preservation, above: 0.5, span: 1, patience: 2}"
    stopped = run(
        tmp_path / "stopped",
        policy_folder,
        "steps=5",
        "cluster.num_workers=1",
        f"alarms.copies={alarm}",
        "stop_on=[copies]",
    )
    assert [line["step"] for line in lines(stopped)] == [1, 2]
    again = "steps=5", "cluster.num_workers=1", f"alarms.copies={alarm}", "stop_on=[copies]"
    run(stopped, policy_folder, *again)  # and stays ended
    assert [line["step"] for line in lines(stopped)] == [1, 2]
    assert [line["step"] for line in read_metrics(stopped) if "eval/mask_iou" in line] == [0, 2]
    assert [line["step"] for line in read_metrics(stopped) if "alarm/copies" in line] == [2]
    assert (stopped / "final" / "ema.safetensors").is_file()
    assert (
        "step 2: copies: canary/unedited/preservation is 1 (limit 0.5)"
        in (stopped / "report.html").read_text()
    )


@pytest.mark.slow
def test_sharded_workers_compute_what_replicated_ones_do(
    straight: Path, policy_folder: Path, tmp_path: Path
) -> None:
    sharded = lines(run(tmp_path / "sharded", policy_folder, f"steps={STEPS}", "cluster.sharding=fsdp2"))
    replicated = lines(straight)
    for name in ("reward/mask_iou", "reward/preservation", "reward/format", "policy/x_cot/velocity_kl"):
        assert sharded[0][name] == pytest.approx(replicated[0][name], abs=1e-6), name
    assert sharded[0]["policy/grad_norm"] == pytest.approx(replicated[0]["policy/grad_norm"], rel=1e-3)
    assert sharded[-1]["policy/x_edit/velocity_kl"] > 0  # the sharded reference stayed where it was


def test_more_workers_than_the_machine_has_are_refused_at_once(policy_folder: Path, tmp_path: Path) -> None:
    too_many = ["cluster.num_workers=4096", "prompts_per_step=4096", "steps=1"]
    with pytest.raises(ResourceError, match=r"asks for 4096 CPUs .* Lower the number of workers"):
        run(tmp_path / "run", policy_folder, *too_many)


@pytest.mark.slow
def test_the_reward_of_the_readme_trains_from_a_folder_of_its_own(
    policy_folder: Path, tmp_path: Path
) -> None:
    """A file of somebody's own and one line of a recipe, as a user would do it: from the command line."""
    readme = (ROOT / "README.md").read_text()
    code = readme.split("## Your own reward")[1].split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "my_lab.py").write_text(code)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "extends: rl/tiny\nname: mine\nrewards: {bright: {type: 'my_lab:Brightness', weight: 0.2}}\n"
    )
    settings = [
        f"model={policy_folder}",
        "steps=1",
        "prompts_per_step=2",
        "group_size=3",
        "rollout.num_steps=4",
        "rollout.window_range=[0,3]",
        "eval.num_samples=4",
        "cluster.num_workers=1",
        "max_missing_share=1.0",
    ]
    # the workers import the file as well
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "experiments.cli", "rl", str(recipe), *settings]
    subprocess.run(call, cwd=tmp_path, env=env, check=True)
    (line,) = lines(tmp_path / "runs" / "mine")
    assert -1.0 <= line["reward/bright"] <= 1.0
    assert line["reward_missing/bright"] == 0.0


@pytest.mark.slow
def test_adapters_train_under_sharded_workers_in_bfloat16(policy_folder: Path, tmp_path: Path) -> None:
    settings = (
        "steps=2",
        "lora={rank: 2, also: [llm2vae]}",
        "cluster.sharding=fsdp2",
        "compute={dtype: bfloat16, activation_checkpointing: true}",
        "objective=reverse_window",
        "max_logprob_gap=1e-3",
    )
    folder = run(tmp_path / "lora", policy_folder, *settings)
    first, second = lines(folder)
    assert first["policy/x_cot/velocity_kl"] == pytest.approx(0.0, abs=1e-4)
    assert second["policy/skipped"] == 0.0
    before = load_pretrained(policy_folder).model.state_dict()
    after = load_pretrained(folder / "final").model.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any("q_proj_moe_gen" in name for name in moved)
    assert all("_moe_gen" in name or "llm2vae" in name for name in moved)


def test_a_dataset_is_trained_and_evaluated_on(policy_folder: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    write(iter(scenes.samples("train", range(6))), pairs, "parquet")
    table = pq.read_table(pairs / "000000.parquet").to_pylist()
    table[2]["task"] = "nonsense"
    pq.write_table(pa.Table.from_pylist(table), pairs / "000000.parquet")
    settings = [f"data.pairs.path={pairs}", "data.pairs.max_bad_share=.5", f"eval.pairs.path={pairs}"]
    folder = run(tmp_path / "run", policy_folder, "steps=3", *settings, "eval.pairs.max_bad_share=.5")
    assert [line["step"] for line in lines(folder)] == [1, 2, 3]  # three steps of two prompts: an epoch
    drawn = {row for step in (1, 2, 3) for row in rollout_ids(folder, step)}
    assert drawn == {f"scenes/train/0/{i}" for i in (0, 1, 3, 4, 5)}
    for name in ("bad_samples.jsonl", "bad_eval_samples.jsonl"):
        (bad,) = (folder / name).read_text().splitlines()
        assert json.loads(bad)["id"] == "scenes/train/0/2"
    evaluated = json.loads((folder / "evals" / "pairs.step_3.json").read_text())
    assert evaluated["samples"]["id"] == [f"scenes/train/0/{i}" for i in (0, 1, 3, 4)]


def rollout_ids(folder: Path, step: int) -> list[str]:
    return pq.read_table(folder / "rollouts" / f"step_{step}.parquet")["sample"].to_pylist()
