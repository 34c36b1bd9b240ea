"""Evaluation of a model on a split of Scenes or on a dataset, with its pictures and per-sample results.

    evals/<name>.step_<N>.json    {"name", "step", "metrics": means, "samples": per-sample values}

Legend: B samples.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from gvcot.chain import CHAINS, Chain
from gvcot.data.images import to_uint8
from gvcot.data.pairs.bad_log import EVAL_FILE, BadLog
from gvcot.data.pairs.config import PairsConfig
from gvcot.data.scenes.levels import WorldConfig
from gvcot.data.scenes.splits import Split
from gvcot.data.show import drawn_sheet
from gvcot.data.source import SAMPLE_FIELDS, first_samples, held_out
from gvcot.errors import ConfigError
from gvcot.model.pretrained import Pretrained, load_pretrained
from gvcot.run_dir import write_atomic
from gvcot.tracking import Tracker
from gvcot.types import ChainConfig, EditSample, GuidanceConfig
from rewards.base import Reward
from rewards.config import RewardConfig
from rewards.registry import build_rewards
from rl import probes
from rl.config import Probe
from rl.scoring import provides
from sft.config import SFTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRunConfig:
    """What `gvcot eval` does."""

    pairs: PairsConfig | None = None
    """A dataset of image pairs; None: a split of Scenes."""

    split: Split = "bench"
    """"val" for tuning, "test" and "bench" for claims."""

    num_samples: int | None = None
    """Samples, of a dataset its first good ones; None: all."""

    num_steps: tuple[int, ...] = (8, 50)
    """ODE steps per image; the model is evaluated at each."""

    draws: int = 1
    """Images drawn per scene, with seeds from `seed` on; a scene's values are their means, and "best/..."
    the best of them. More of them take the luck of the noise out of a comparison."""

    shift: float = 1.0
    """Shift of the sampling grid; as in rollouts."""

    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Classifier-free guidance; none by default."""

    chain: ChainConfig = field(default_factory=ChainConfig)
    size: int = 64
    """Pixels per side."""

    world: WorldConfig = field(default_factory=WorldConfig)
    """How hard the scenes are, and which tasks they have."""

    seed: int = 0
    batch: int = 64
    probes: tuple[Probe, ...] = ("shuffled_x_cot", "true_x_cot", "counterfactual_x_cot")
    """Also draw edits after these reasoning images; without any it takes less than half the time."""

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model; the codec computes in float32."""

    threads: int = 0
    """Torch threads; 0: all cores."""

    out: str | None = None
    """Folder for the JSON and panels; None: `evals/` beside the model."""

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"draws: expected at least 1 image per scene; got {self.draws}")


STANDARD_REWARDS = (
    "mask_iou",
    "edit_accuracy",
    "preservation",
    "format",
    "where",
    "what_given_where",
    "x_cot_change_iou",
)
"""Scored at every evaluation of a supervised stage, as far as the chain allows."""

PANEL_ROWS = 12
"""Samples on a panel."""


def standard_rewards(chain: Chain, pairs: PairsConfig | None = None) -> dict[str, Reward]:
    """The standard rewards that a chain can be scored with, on a dataset or on Scenes."""
    given = provides(chain, pairs)
    built = build_rewards(
        {name: RewardConfig(type=name) for name in STANDARD_REWARDS},
        set(SAMPLE_FIELDS) | {p.name for p in CHAINS["gvcot"].phases},
    )
    return {name: reward for name, reward in built.items() if reward.requires <= given}


class StageEvaluator:
    """Evaluates a supervised stage while it trains: called with the averaged model and the step."""

    def __init__(self, config: SFTConfig, run: Path, tracker: Tracker) -> None:
        self._config, self._run, self._tracker = config, run, tracker
        options = config.eval
        size = config.model.image_size
        held = held_out(options.pairs, options.split, size=size, world=options.world)
        self._samples = first_samples(held, options.num_samples)
        BadLog(run, EVAL_FILE).count(held.bad)

    def __call__(self, policy: Pretrained, step: int) -> dict[str, float]:
        options = self._config.eval
        chain_config = ChainConfig(name=options.chain, feedback=self._config.feedback)
        chain = Chain(chain_config, policy.tokenizer, has_vit=policy.model.config.vit is not None)
        rewards = standard_rewards(chain, options.pairs)
        result = probes.evaluate(
            policy,
            chain,
            rewards,
            self._samples,
            num_steps=options.num_steps,
            shift=options.shift,
            seed=self._config.seed,
            batch=options.batch,
            probes=(),
            guidance=options.guidance,
        )
        return record(self._run, self._tracker, options.name, step, result, self._samples, list(rewards))


def record(
    run: Path,
    tracker: Tracker,
    name: str,
    step: int,
    result: probes.Evaluation,
    samples: Sequence[EditSample],
    rewards: Sequence[str],
) -> dict[str, float]:
    """Write the evaluation's JSON and panel, and return its metrics under "eval/..." names."""
    metrics = probes.summary(result, samples, rewards)
    write_evaluation(run, name, step, metrics, result, samples)
    images = {phase: to_uint8(image[:PANEL_ROWS]) for phase, image in result.images.items()}
    sheet = drawn_sheet(samples[:PANEL_ROWS], images)
    tracker.images(step, f"eval/{name}", np.asarray(sheet))
    return {f"eval/{key}": value for key, value in metrics.items()}


def write_evaluation(
    run: Path,
    name: str,
    step: int,
    metrics: Mapping[str, float],
    result: probes.Evaluation,
    samples: Sequence[EditSample],
) -> None:
    """`evals/<name>.step_<N>.json` with means and per-sample values; missing scores are null."""
    folder = run / "evals"
    folder.mkdir(exist_ok=True)
    values = {
        key: [None if math.isnan(v) else round(v, 5) for v in row.tolist()]
        for key, row in result.values.items()
    }
    content = {
        "name": name,
        "step": step,
        "metrics": {k: (None if math.isnan(v) else v) for k, v in metrics.items()},
        "samples": {
            "id": [s.sample_id for s in samples],
            "task": [s.task for s in samples],
            "referral": [s.referral for s in samples],
            "values": values,
        },
    }
    write_atomic(folder / f"{name}.step_{step}.json", json.dumps(content) + "\n")


def evaluate_folder(folder: Path, config: EvalRunConfig) -> dict[str, dict[str, float]]:
    """Evaluate a checkpoint folder at each number of steps; prints a table, writes JSON and a panel."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    policy = load_pretrained(folder)
    policy.model.to(config.device, getattr(torch, config.dtype))
    policy.codec.to(config.device)
    chain = Chain(config.chain, policy.tokenizer, has_vit=policy.model.config.vit is not None)
    rewards = standard_rewards(chain, config.pairs)
    held = held_out(config.pairs, config.split, size=config.size, world=config.world)
    samples = first_samples(held, config.num_samples)
    for bad in held.bad:
        Console().print(f"left out: {bad.id}: {bad.kind}: {bad.reason}", highlight=False, markup=False)
    out = folder if config.out is None else Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, dict[str, float]] = {}
    for num_steps in config.num_steps:
        drawn = [
            probes.evaluate(
                policy,
                chain,
                rewards,
                samples,
                num_steps=num_steps,
                shift=config.shift,
                seed=config.seed + draw,
                batch=config.batch,
                probes=config.probes,
                guidance=config.guidance,
            )
            for draw in range(config.draws)
        ]
        result = mean_of_draws(drawn)
        name = f"{config.split if config.pairs is None else config.pairs.name}-{num_steps}steps"
        metrics[name] = probes.summary(result, samples, list(rewards))
        write_evaluation(out, name, 0, metrics[name], result, samples)
        images = {phase: to_uint8(image[:PANEL_ROWS]) for phase, image in result.images.items()}
        drawn_sheet(samples[:PANEL_ROWS], images).save(out / "evals" / f"{name}.png")
    print_table(metrics)
    return metrics


def mean_of_draws(drawn: Sequence[probes.Evaluation]) -> probes.Evaluation:
    """Each sample's values averaged over draws that have one, and with several draws the best of each under
    "best/<metric>"; the first draw's images."""
    first = drawn[0]
    stacked = {key: torch.stack([one.values[key] for one in drawn]) for key in first.values}
    values = {key: value_FB.nanmean(0) for key, value_FB in stacked.items()}
    if len(drawn) > 1:
        for key, value_FB in stacked.items():
            best_B = value_FB.nan_to_num(nan=-math.inf).amax(0)
            values[f"best/{key}"] = best_B.where(best_B > -math.inf, math.nan)
    return probes.Evaluation(values=values, images=first.images)


def print_table(metrics: Mapping[str, Mapping[str, float]]) -> None:
    """One row per metric, one column per evaluation."""
    table = Table("metric", *metrics)
    for key in next(iter(metrics.values())):
        table.add_row(key, *(f"{values.get(key, math.nan):.4f}" for values in metrics.values()))
    Console().print(table)
