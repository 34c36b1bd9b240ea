"""How much of a policy gradient is signal, and where in the model it is.

Gradients g_1 ... g_M of M disjoint batches of rollouts, all taken at the starting policy, share their
expectation and nothing else. So the mean cosine between two of them is the share of a batch's squared
gradient that is signal: |E g|^2 / E |g|^2. Each parameter's gradient is first divided by its root mean square
over the batches, as Adam would, so that large ones don't decide alone. Parameters whose share is near 0 only
add noise to an update; a change of the estimator (rewards, credit, noise levels) that raises the share makes
updates better for the same rollouts.

Legend: M batches, P prompts and B = P * G chains of each, n parameters.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from rich.table import Table
from tensordict import TensorDict
from torch import Tensor

from gvcot.chain import Chain
from gvcot.errors import ConfigError
from gvcot.model.pretrained import Pretrained
from gvcot.sampler import condition_of, draw
from rewards import mix
from rewards.registry import build_rewards
from rl.config import RLConfig
from rl.learner import Learner, Update
from rl.objectives import Drawn
from rl.scoring import TrainingPrompts, provides, reward_batch, score_columns
from rl.train import credited
from rl.worker import initial_seeds, rollout_seeds
from rollout.sample import chain_noise, window_denoiser
from rollout.window import draw_windows

Gradient = dict[str, Tensor]
"""Parameter name -> its gradient."""


class Share(NamedTuple):
    """Of one group of parameters."""

    parameters: int
    signal: float
    """Mean cosine between two batches' gradients; negative only by chance."""

    error: float
    """Its standard error, as if pairs were independent (they nearly are: parameters are many)."""


def signal_shares(config: RLConfig, policy: Pretrained, num_batches: int) -> dict[str, Share]:
    """The share of signal of all trained parameters ("all"), and of each group of `groups_of`.

    Args:
        config: rewards, credit, objective and batch size; its anchor has no gradient at the start.
        policy: the starting policy.
        num_batches: M, at least 2; the batches are those of the run's first M steps.
    """
    if num_batches < 2:
        raise ConfigError(f"a cosine needs at least 2 batches; got {num_batches}")
    config = replace(config, loss=replace(config.loss, kl_coef=0.0, updates_per_rollout=1))
    gradients = [batch_gradient(config, policy, step) for step in range(num_batches)]
    names = [name for name in gradients[0] if all(name in g for g in gradients)]
    return {
        group: share(torch.stack([torch.cat([g[name].flatten() for name in members]) for g in gradients]))
        for group, members in groups_of(names).items()
    }


def share(gradient_Mn: Float[Tensor, "M n"]) -> Share:
    """See the module docstring. A share of .20 is found as .17 with 8 batches, and as .18 with 16, since the
    root mean squares are estimates too."""
    rms_n = gradient_Mn.square().mean(0).sqrt().clamp_min(1e-12)
    unit_Mn = torch.nn.functional.normalize(gradient_Mn / rms_n, dim=1)
    num = len(unit_Mn)
    upper = torch.triu_indices(num, num, offset=1)
    cosines = (unit_Mn @ unit_Mn.T)[upper[0], upper[1]]
    error = cosines.std(correction=0).item() / len(cosines) ** 0.5
    return Share(gradient_Mn.shape[1], cosines.mean().item(), error)


def as_table(shares: Mapping[str, Share]) -> Table:
    """The largest shares first, after that of all parameters."""
    table = Table("parameters of", "number", "share of signal")
    order = sorted(shares, key=lambda group: (group != "all", -shares[group].signal))
    for group in order:
        found = shares[group]
        table.add_row(group, f"{found.parameters:,}", f"{found.signal:.3f} ± {found.error:.3f}")
    return table


def groups_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Group -> parameter names: "all", each decoder layer, the rest of the model by its first name, and
    within the decoder's layers each kind of parameter."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups["all"].append(name)
        layer = re.search(r"language_model\.model\.layers\.(\d+)\.(.+)", name)
        if layer:
            groups[f"layer {layer[1]}"].append(name)
            groups[f"layers: {layer[2]}"].append(name)
        else:
            groups[name.removeprefix("language_model.model.").partition(".")[0]].append(name)
    return dict(groups)


def batch_gradient(config: RLConfig, policy: Pretrained, step: int) -> Gradient:
    """The gradient of one training step's batch, at the policy as it is."""
    chain = Chain(config.chain, policy.tokenizer, has_vit=policy.model.config.vit is not None)
    rewards = build_rewards(config.rewards, provides(chain, config.data.pairs))
    phases = [phase.name for phase in chain.phases]
    learner = Learner(config, policy.model, chain, 1)
    how, num = learner.objective.sampling, config.prompts_per_step
    positions = list(range(num))
    chain_seeds_B = rollout_seeds(config, step, positions)
    prompt_B = torch.arange(num).repeat_interleave(config.group_size)
    samples = TrainingPrompts(config.data)(range(step * num, (step + 1) * num))
    windows = draw_windows(
        config.seed, step, how.num_steps, how.window_size, *how.window_range, phases=phases
    )
    with torch.no_grad():
        drawn = draw(
            policy.model,
            policy.codec,
            chain,
            condition_of(samples, policy.model.config, policy.codec, chain),
            denoise=window_denoiser(how, windows, chain_seeds_B),
            noise=chain_noise(initial_seeds(config, step, positions)),
            chains_per_prompt=config.group_size,
        )
        batch = reward_batch(policy.codec, samples, prompt_B, drawn.images)
        rows = TensorDict(dict(score_columns(rewards, batch)), batch_size=[len(prompt_B)])
    reaches = mix.reaches(rewards, config.rewards, phases)
    (advantage_BK, kept_BK), _ = credited(config, rows, prompt_B, step, reaches, phases)
    update = Update(
        drawn=Drawn(trajectory=drawn.trajectory, prompt_B=prompt_B, chain_seeds_B=chain_seeds_B),
        advantage_BK=advantage_BK,
        kept_BK=kept_BK,
        num_kept=float(kept_BK.sum()),
    )
    policy.model.zero_grad(set_to_none=True)
    learner.backward(update)
    found = {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}
    policy.model.zero_grad(set_to_none=True)
    return found
