"""Evaluation by plain ODE sampling, with probes that need sampling of their own.

    shuffled x_cot    the edit is drawn after another sample's reasoning image: if its score doesn't fall, the
                      model ignores what it drew
    true x_cot        the edit is drawn after the true reasoning image: what better localisation could give
    counterfactual    the edit is drawn after paint on another thing of the same scene: `follows` is 1 where
      x_cot           that one is edited (how faithful the edit is to its reasoning), `where` where the edit
                      goes to the true referent all the same

Legend: B samples, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from gvcot import overlay, seeds
from gvcot.chain import Chain
from gvcot.data.images import to_tensor
from gvcot.model import flow
from gvcot.model.codec import encode_in_parts
from gvcot.model.pretrained import Pretrained
from gvcot.sampler import Drawn, condition_of, draw, ode_denoiser
from gvcot.types import EditSample, GuidanceConfig, TextPhase
from rewards.base import Reward
from rewards.canaries import canaries
from rewards.mix import applies, score_all
from rewards.where import Where
from rl.config import Probe
from rl.scoring import reward_batch


@dataclass(kw_only=True, slots=True)
class Evaluation:
    """Per-sample results, in the order of the samples. NaN marks a missing score."""

    values: dict[str, Tensor]
    """Metric name -> fp32 (B,)."""

    images: dict[str, Tensor] = field(default_factory=dict)
    """Phase name -> (B, 3, H, W)."""

    def means(self) -> dict[str, float]:
        """Means over the samples that have the metric."""
        return {name: value_B.nanmean().item() for name, value_B in self.values.items()}


@torch.no_grad()
def evaluate(
    policy: Pretrained,
    chain: Chain,
    rewards: Mapping[str, Reward],
    samples: Sequence[EditSample],
    *,
    num_steps: int,
    shift: float,
    seed: int,
    batch: int = 64,
    probes: Sequence[Probe] = ("shuffled_x_cot", "true_x_cot"),
    guidance: GuidanceConfig | None = None,
) -> Evaluation:
    """Draw one chain per sample and score it.

    Args:
        policy: model, codec and tokenizer.
        chain: what is drawn.
        rewards: components to score.
        samples: of one image size.
        num_steps: ODE steps per image.
        shift: of the sampling grid.
        seed: a sample's noise depends on (seed, its id, phase), whatever the batch.
        batch: samples drawn at once.
        probes: also draw edits after these reasoning images, in chains whose edit sees one.
        guidance: None for none.
    """
    denoise = ode_denoiser(num_steps, shift)
    sampler = partial(draw, policy.model, policy.codec, chain, denoise=denoise, guidance=guidance)
    chunks = [
        _evaluate_chunk(policy, chain, rewards, samples[i : i + batch], sampler, seed, probes)
        for i in range(0, len(samples), batch)
    ]
    return concatenate(chunks)


def concatenate(parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of consecutive samples as one."""
    return Evaluation(
        values={k: torch.cat([p.values[k] for p in parts]) for k in parts[0].values},
        images={k: torch.cat([p.images[k] for p in parts]) for k in parts[0].images},
    )


def _evaluate_chunk(
    policy: Pretrained,
    chain: Chain,
    rewards: Mapping[str, Reward],
    samples: Sequence[EditSample],
    sampler: Callable[..., Drawn],
    seed: int,
    probes: Sequence[Probe],
) -> Evaluation:
    config, codec = policy.model.config, policy.codec
    condition = condition_of(samples, config, codec, chain)

    def noise(name: str, shape: tuple[int, int, int]) -> Tensor:
        return seeds.noise_BND([seeds.derive(seed, s.sample_id, name) for s in samples], shape[1:])

    def run(given: dict[str, Tensor] | None = None) -> Drawn:
        return sampler(condition, noise=noise, given=given)

    drawn = run()
    group_B = torch.arange(len(samples))
    device = policy.model.device
    scored = reward_batch(codec, samples, group_B, drawn.images, device=device)
    values: dict[str, Tensor] = {}
    for name, result in score_all(rewards, scored).items():
        values[name] = torch.where(result.valid_B, result.raw_B, torch.nan)
        if rewards[name].may_fail:
            missing_B = (~result.valid_B).float().cpu()
            values[f"missing/{name}"] = missing_B.where(applies(rewards[name], samples), torch.nan)
    values |= {f"canary/{name}": value_B for name, value_B in canaries(scored).items()}
    if chain.reasons_first:
        after = {name: r for name, r in rewards.items() if r.reaches == "x_edit"}
        for probe in probes:
            other = _other_reasoning(probe, policy, chain, samples, drawn, seed)
            images = run({"x_cot": other.x_cot_BND}).images
            probed = reward_batch(codec, samples, group_B, images, device=device)
            results = score_all(after, probed)
            if other.painted is not None:
                others = [replace(s, referents=p) for s, p in zip(samples, other.painted, strict=True)]
                results["follows"] = Where().score(replace(probed, samples=others))
            for name, result in results.items():
                valid_B = result.valid_B & other.valid_B.to(device)
                values[f"probe/{probe}/{name}"] = torch.where(valid_B, result.raw_B, torch.nan)
    return Evaluation(values={k: value_B.cpu() for k, value_B in values.items()}, images=drawn.images)


@dataclass(kw_only=True, slots=True)
class OtherReasoning:
    """Reasoning images that are not the drawn ones."""

    x_cot_BND: Tensor
    """Clean latent tokens."""

    valid_B: Tensor
    """bool; False where a sample has no such image."""

    painted: list[tuple[int, ...]] | None = None
    """Which of each sample's things are painted instead of its referents."""


def _other_reasoning(
    probe: Probe, policy: Pretrained, chain: Chain, samples: Sequence[EditSample], drawn: Drawn, seed: int
) -> OtherReasoning:
    all_B = torch.ones(len(samples), dtype=torch.bool)
    if probe == "shuffled_x_cot":
        reasoning = drawn.trajectory.phases[0]
        assert not isinstance(reasoning, TextPhase), "reasoning images come first"
        return OtherReasoning(x_cot_BND=reasoning.final_BND.roll(1, 0), valid_B=all_B)
    masks = [s.mask_HW for s in samples]
    if probe == "true_x_cot":
        if chain.phases[0].truth == "source":
            masks = [np.zeros_like(mask_HW) for mask_HW in masks]
        return OtherReasoning(x_cot_BND=_painted(policy, samples, masks), valid_B=all_B)
    chosen = [other_things(sample, seed) for sample in samples]
    for row, (sample, things) in enumerate(zip(samples, chosen, strict=True)):
        if things:
            masks[row] = np.logical_or.reduce([sample.things[i].mask_HW for i in things])
    return OtherReasoning(
        x_cot_BND=_painted(policy, samples, masks),
        valid_B=torch.tensor([len(things) > 0 for things in chosen]),
        painted=chosen,
    )


def _painted(policy: Pretrained, samples: Sequence[EditSample], masks: Sequence[np.ndarray]) -> Tensor:
    """Latent tokens (B, N, D) of the sources with these masks painted on them, each in its sample's style."""
    source = to_tensor([s.source_HW3 for s in samples])
    painted = overlay.paint(source, torch.from_numpy(np.stack(masks)), [s.paint for s in samples])
    return flow.patchify(encode_in_parts(policy.codec, painted), policy.model.config.latent_patch)


def other_things(sample: EditSample, seed: int) -> tuple[int, ...]:
    """As many things as the instruction means, but others, drawn from (seed, the sample's id).

    Empty where the instruction means no thing of the source, or where there aren't enough others.
    """
    others = [i for i in range(len(sample.things)) if i not in sample.referents]
    num = len(sample.referents)
    if not 0 < num <= len(others):
        return ()
    rng = np.random.default_rng(seeds.derive(seed, sample.sample_id, "counterfactual"))
    return tuple(sorted(int(i) for i in rng.choice(others, size=num, replace=False)))


def summary(
    evaluation: Evaluation, samples: Sequence[EditSample], rewards: Sequence[str]
) -> dict[str, float]:
    """Means over all samples, and of each reward per referral kind ("<reward>/referral/<kind>") and task.

    A mean of a group is left out where none of its samples has the score.
    """
    out = evaluation.means()
    for field_name in ("referral", "task"):
        kinds = [getattr(s, field_name) for s in samples]
        for kind in sorted(set(kinds)):
            rows = torch.tensor([k == kind for k in kinds])
            for name in rewards:
                mean = evaluation.values[name][rows].nanmean()
                if not mean.isnan():
                    out[f"{name}/{field_name}/{kind}"] = mean.item()
    return out
