"""Rewards on samples: planted behaviours and a model's own chains with their scores, before any training.

Legend: B samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from gvcot.chain import Chain
from gvcot.data.images import to_uint8
from gvcot.errors import ConfigError, closest
from gvcot.model.pretrained import Pretrained
from gvcot.sampler import condition_of, draw, ode_denoiser
from gvcot.seeds import derive, noise_BND
from gvcot.types import ChainConfig, EditSample, RewardResult
from rewards.base import Reward, RewardBatch
from rewards.canaries import canaries
from rewards.mix import score_all
from rewards.planted import BEHAVIOURS
from rl.alarms import Ring, rings_of
from rl.config import AlarmConfig
from rl.scoring import reward_batch, valid_mean

SCALE = 2
"""Screen pixels per image pixel."""

_LINE, _GAP = 16, 6


def chains(
    policy: Pretrained, samples: Sequence[EditSample], behaviours: Sequence[str]
) -> dict[str, RewardBatch]:
    """Chains by behaviour: planted ones by their names, "model" for what the policy draws (8 ODE steps).

    Raises:
        ConfigError: an unknown behaviour.
    """
    group_B = torch.arange(len(samples))
    plain = reward_batch(policy.codec, samples, group_B, {})
    out = {}
    for name in behaviours:
        if name == "model":
            out[name] = replace(plain, images=_drawn(policy, samples))
        elif name in BEHAVIOURS:
            out[name] = BEHAVIOURS[name](plain)
        else:
            raise ConfigError(f"unknown behaviour {name!r}: {closest(name, ['model', *BEHAVIOURS])}")
    return out


def score_table(results: Mapping[str, RewardResult]) -> Table:
    """A row per behaviour: mean score, share of missing scores, mean of each part."""
    parts = list(next(iter(results.values())).parts)
    table = Table("behaviour", "score", "missing", *parts)
    for name, result in results.items():
        missing = 1 - result.valid_B.float().mean().item()
        values = [value_B.nanmean().item() for value_B in result.parts.values()]
        table.add_row(name, f"{valid_mean(result):.3f}", f"{missing:.0%}", *(f"{v:.3f}" for v in values))
    return table


def sheet(batches: Mapping[str, RewardBatch], results: Mapping[str, RewardResult]) -> Image.Image:
    """Samples down, behaviours across: reasoning image and edit, with the score below."""
    names, samples = list(batches), next(iter(batches.values())).samples
    height, width = samples[0].source_HW3.shape[:2]
    cell = 2 * width * SCALE + 2 * _GAP, height * SCALE + _LINE + _GAP
    out = Image.new("RGB", (cell[0] * len(names), (cell[1] + _LINE) * len(samples) + _LINE), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(12)
    for column, name in enumerate(names):
        pen.text((column * cell[0], 0), name, fill="black", font=font)
        images = [to_uint8(batches[name].image(phase)) for phase in ("x_cot", "x_edit")]
        for row in range(len(samples)):
            top = _LINE + row * (cell[1] + _LINE)
            for i, image_BHW3 in enumerate(images):
                picture = Image.fromarray(np.asarray(image_BHW3[row]))
                size = (width * SCALE, height * SCALE)
                place = (column * cell[0] + i * (size[0] + 2), top + _LINE)
                out.paste(picture.resize(size, Image.Resampling.NEAREST), place)
            result = results[name]
            score = f"{result.raw_B[row].item():.3f}" if result.valid_B[row] else "missing"
            pen.text((column * cell[0], top + _LINE + height * SCALE), score, fill="#c2185b", font=font)
    for row, sample in enumerate(samples):
        words = f"{sample.task}: {sample.instruction}"
        pen.text((0, _LINE + row * (cell[1] + _LINE)), words, fill="#555555", font=font)
    return out


def hack_table(
    rewards: Mapping[str, Reward],
    weights: Mapping[str, float],
    alarms: Mapping[str, AlarmConfig],
    batches: Mapping[str, RewardBatch],
) -> Table:
    """Behaviours down: each reward's mean, the weighted mean of all, and the alarms that would ring for a
    policy that slid from the truth into that behaviour."""
    table = Table("behaviour", *rewards, "weighted mean", "alarms")
    for name, batch in batches.items():
        means = {r: valid_mean(result) for r, result in score_all(rewards, batch).items()}
        total = sum(weights.values())
        mean = sum(weights[r] * means[r] for r in rewards) / total
        rings = slide(alarms, batches["truth"], batch)
        cells = [f"{means[r]:.3f}" for r in rewards]
        table.add_row(name, *cells, f"{mean:.3f}", ", ".join(r.name for r in rings) or "–")
    return table


def slide(alarms: Mapping[str, AlarmConfig], before: RewardBatch, after: RewardBatch) -> list[Ring]:
    """What rings when a run's canaries are those of `before`, and then, long enough, those of `after`."""
    steps = 10 * max(alarm.span + alarm.patience for alarm in alarms.values())
    lines = [
        {"step": step, **{f"canary/{name}": value_B.mean().item() for name, value_B in values.items()}}
        for half, values in enumerate((canaries(before), canaries(after)))
        for step in range(1 + half * steps, 1 + (half + 1) * steps)
    ]
    return rings_of(alarms, lines)


@torch.no_grad()
def _drawn(policy: Pretrained, samples: Sequence[EditSample]) -> dict[str, torch.Tensor]:
    config = policy.model.config
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=config.vit is not None)
    condition = condition_of(samples, config, policy.codec, chain)

    def noise(phase: str, shape: tuple[int, int, int]) -> torch.Tensor:
        return noise_BND([derive(0, s.sample_id, phase) for s in samples], shape[1:])

    denoise = ode_denoiser(8, 3.0)
    return draw(policy.model, policy.codec, chain, condition, denoise=denoise, noise=noise).images


def save(sheet: Image.Image, out: Path) -> None:
    """Write the picture, making its folder."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
