"""Measures how many edits a second the client of `vlm_judge` and the scenes judge get through on one core.

    taskset -c 0 python docs/measured/judge_throughput.py OUT.json [COUNT]

COUNT edits (96) that the warm start draws, two questions each: by samples in flight, with answers at once and
after .3 s; with a cold and a warm cache; and where one request in ten fails. Each measurement has a server of
its own and is a line of JSON as soon as it is done.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from experiments import try_reward
from gvcot.data import scenes
from gvcot.model.pretrained import WARM_START, find_model, load_pretrained
from gvcot.types import RewardResult
from rewards.base import RewardBatch
from rewards.judge.reward import VLMJudge
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig

IN_FLIGHT = (1, 4, 16, 64)

LATENCY_S = {"at once": 0.0, "after .3 s": 0.3}

FAULTS = {"429": 0.02, "500": 0.02} | dict.fromkeys(
    ("timeout", "truncated", "garbage", "nan", "wrong_schema", "refusal"), 0.01
)


def judged(batch: RewardBatch, url: str, **options: object) -> tuple[RewardResult, float]:
    """The scores, and how many a second; connections are open before."""
    endpoint = {"base_url": url, "model": "scenes-judge", "send_metadata": True}
    reward = VLMJudge(endpoints=[endpoint], **options)
    reward.start()
    began = time.perf_counter()
    result = reward.score(batch)
    seconds = time.perf_counter() - began
    reward.close()
    return result, round(len(batch.samples) / seconds, 1)


def in_flight(batch: RewardBatch) -> Iterator[tuple[str, object]]:
    """Samples a second by `max_concurrency`, nothing cached."""
    for name, latency_s in LATENCY_S.items():
        for num in IN_FLIGHT:
            with running(ScenesJudgeConfig(latency_s=latency_s)) as url:
                yield f"{num} in flight, answers {name}", judged(batch, url, max_concurrency=num)[1]


def cached(batch: RewardBatch) -> Iterator[tuple[str, object]]:
    """Samples a second with a file of scores that is empty, and then holds them all."""
    for name, latency_s in LATENCY_S.items():
        with (
            tempfile.TemporaryDirectory() as folder,
            running(ScenesJudgeConfig(latency_s=latency_s)) as url,
        ):
            for cache in ("cold", "warm"):
                result, speed = judged(batch, url, cache=f"{folder}/scores.sqlite")
                assert result.parts["cached"].mean().item() == (cache == "warm")
                yield f"{cache} cache, answers {name}", speed


def faults(batch: RewardBatch) -> Iterator[tuple[str, object]]:
    """The same with and without `FAULTS`: speeds, and what becomes of the scores."""
    with running(ScenesJudgeConfig()) as url:
        healthy, speed = judged(batch, url, timeout_s=3.0)
    yield "without faults", speed
    with running(ScenesJudgeConfig(faults=FAULTS)) as url:
        found, speed = judged(batch, url, timeout_s=3.0)
    missing = {name: int(part_B.sum()) for name, part_B in found.parts.items() if name.startswith("missing_")}
    yield (
        "with faults",
        {
            "samples_per_second": speed,
            "scored": found.valid_B.float().mean().item(),
            "same_scores": torch.equal(found.raw_B[found.valid_B], healthy.raw_B[found.valid_B]),
        }
        | {name: num for name, num in missing.items() if num},
    )


def main() -> None:
    out, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 96
    torch.set_num_threads(1)
    policy = load_pretrained(find_model(WARM_START))
    batch = try_reward.chains(policy, scenes.samples("val", range(count)), ["model"])["model"]
    found: dict[str, object] = {"edits": count}
    for part in (in_flight, cached, faults):
        for name, value in part(batch):
            found[name] = value
            print(json.dumps({name: value}), flush=True)
            out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
