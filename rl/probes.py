"""Evaluation by plain ODE sampling, with probes that need sampling of their own.

    shuffled x_cot    the edit is drawn after another sample's reasoning image: if its score doesn't fall, the
                      model ignores what it drew
    true x_cot        the edit is drawn after the true reasoning image: what better localisation could give

Legend: B samples, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gvcot import overlay, seeds
from gvcot.chain import Chain
from gvcot.data.images import to_tensor
from gvcot.model import flow
from gvcot.model.pretrained import Pretrained
from gvcot.sampler import Drawn, condition_of, draw, ode_denoiser
from gvcot.types import EditSample, TextPhase
from rewards.base import Reward
from rewards.canaries import canaries
from rewards.mix import score_all
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
    probes: bool = True,
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
        probes: also draw edits after shuffled and after true reasoning images, where the chain has one.
    """
    chunks = [
        _evaluate_chunk(policy, chain, rewards, samples[i : i + batch], num_steps, shift, seed, probes)
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
    num_steps: int,
    shift: float,
    seed: int,
    probes: bool,
) -> Evaluation:
    config, codec = policy.model.config, policy.codec
    condition = condition_of(samples, config, codec, chain)
    denoise = ode_denoiser(num_steps, shift)

    def noise(name: str, shape: tuple[int, int, int]) -> Tensor:
        return seeds.noise_BND([seeds.derive(seed, s.sample_id, name) for s in samples], shape[1:])

    def run(given: dict[str, Tensor] | None = None) -> Drawn:
        return draw(policy.model, codec, chain, condition, denoise=denoise, noise=noise, given=given)

    drawn = run()
    group_B = torch.arange(len(samples))
    scored = reward_batch(codec, samples, group_B, drawn.images)
    values: dict[str, Tensor] = {}
    for name, result in score_all(rewards, scored).items():
        values[name] = torch.where(result.valid_B, result.raw_B, torch.nan)
    values |= {f"canary/{name}": value_B for name, value_B in canaries(scored).items()}
    if probes and len(chain.phases) > 1:
        after = {name: r for name, r in rewards.items() if r.reaches == chain.phases[-1].name}
        for probe, x_cot_BND in _other_reasoning(policy, samples, drawn).items():
            images = run({"x_cot": x_cot_BND}).images
            for name, result in score_all(after, reward_batch(codec, samples, group_B, images)).items():
                values[f"probe/{probe}/{name}"] = torch.where(result.valid_B, result.raw_B, torch.nan)
    return Evaluation(values=values, images=drawn.images)


def _other_reasoning(policy: Pretrained, samples: Sequence[EditSample], drawn: Drawn) -> dict[str, Tensor]:
    """Latent tokens of reasoning images that are not the drawn ones."""
    source = to_tensor([s.source_HW3 for s in samples])
    mask_BHW = torch.from_numpy(np.stack([s.mask_HW for s in samples]))
    painted = overlay.paint(source, mask_BHW, [s.paint for s in samples])
    truth_BND = flow.patchify(policy.codec.encode(painted), policy.model.config.latent_patch)
    reasoning = drawn.trajectory.phases[0]
    assert not isinstance(reasoning, TextPhase), "reasoning images come first"
    return {"shuffled_x_cot": reasoning.final_BND.roll(1, 0), "true_x_cot": truth_BND}


def summary(
    evaluation: Evaluation, samples: Sequence[EditSample], rewards: Sequence[str]
) -> dict[str, float]:
    """Means over all samples, and of each reward per referral kind ("<reward>/referral/<kind>") and task."""
    out = evaluation.means()
    for field_name in ("referral", "task"):
        kinds = [getattr(s, field_name) for s in samples]
        for kind in sorted(set(kinds)):
            rows = torch.tensor([k == kind for k in kinds])
            for name in rewards:
                out[f"{name}/{field_name}/{kind}"] = evaluation.values[name][rows].nanmean().item()
    return out
