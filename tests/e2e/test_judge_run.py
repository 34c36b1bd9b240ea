"""RL with a judge that fails: a real run against the scenes judge, which is told to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from experiments.launch import run_rl
from gvcot.errors import RewardError
from gvcot.tracking import read_metrics
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig

pytestmark = pytest.mark.slow

STEPS = 3


@pytest.fixture
def judge() -> Iterator[str]:
    with running(ScenesJudgeConfig()) as base_url:
        yield base_url


def break_it(base_url: str, **faults: float) -> None:
    httpx.post(base_url.removesuffix("/v1") + "/admin/faults", json=faults).raise_for_status()


def run(folder: Path, base_url: str, *overrides: str) -> Path:
    endpoint = {"base_url": base_url, "model": "scenes-judge", "send_metadata": True}
    settings = [
        f"rewards.judge.options.endpoints={json.dumps([endpoint])}",
        "rewards.judge.options.max_attempts=2",
        "rewards.judge.options.backoff_s=0.01",
        "rewards.judge.options.cache=null",
        "cluster.num_workers=1",
        "prompts_per_step=2",
        "group_size=3",
        "rollout.num_steps=2",
        "eval.num_samples=2",
        "eval.every=0",
        "save_every=10",
        *overrides,
    ]
    return run_rl("rl/tiny-judge", settings, resume="auto", dry_run=False, run_dir=folder)


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a training step logged, without clock times and memory."""
    logged = [line for line in read_metrics(folder) if "policy/loss" in line]
    varying = ("time/", "policy/peak_memory")
    return [{k: v for k, v in line.items() if not k.startswith(varying)} for line in logged]


def test_a_failing_judge_stops_the_run_and_a_healthy_one_goes_on_with_it(judge: str, tmp_path: Path) -> None:
    straight = run(tmp_path / "straight", judge, f"steps={STEPS}")
    assert "eval/judge" in read_metrics(straight)[0]
    assert read_metrics(straight)[0]["eval/missing/judge"] == 0.0

    broken = run(tmp_path / "broken", judge, "steps=2")
    break_it(judge, **{"500": 0.4, "garbage": 0.4})  # so many that two attempts and six samples are enough
    with pytest.raises(RewardError, match=r"reward judge: \d+% of 6 scores are missing \((parse|server): ."):
        run(broken, judge, f"steps={STEPS}")
    failed = read_metrics(broken)[-1]
    assert failed["step"] == 3
    assert failed["reward_missing/judge"] > 0.15
    kinds = ("server", "parse")
    counted = sum(failed.get(f"reward_part/judge/missing_{kind}", 0.0) for kind in kinds)
    assert counted == pytest.approx(failed["reward_missing/judge"])

    break_it(judge)
    run(broken, judge, f"steps={STEPS}")
    assert lines(broken) == lines(straight)  # as if nothing had happened


def test_what_is_missing_is_not_a_zero(judge: str, tmp_path: Path) -> None:
    break_it(judge, refusal=0.5)
    folder = run(tmp_path / "run", judge, "steps=1", "max_missing_share=1.0", "panel_every=1")
    (line,) = lines(folder)
    assert line["reward_missing/judge"] > 0
    break_it(judge)
    whole = run(tmp_path / "whole", judge, "steps=1", "panel_every=1")
    (healthy,) = lines(whole)
    assert healthy["reward_missing/judge"] == 0
    ours, theirs = (
        pq.read_table(path / "rollouts" / "step_1.parquet")["judge"].to_pylist() for path in (folder, whole)
    )
    assert None in ours
    assert None not in theirs
    assert all(one is None or one == other for one, other in zip(ours, theirs, strict=True))
