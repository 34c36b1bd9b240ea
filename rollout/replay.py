"""Replaying a trajectory with gradients: log-probs of all window steps of all images in one packed forward.

    prefix | x_cot@t1 | x_cot@t2 | ... | x_cot clean | x_edit@t1 | x_edit@t2 | ...

Noise segments see what stands before them but not each other, so they share one prefix; the prefix is
recomputed with gradient, because the source's and the reasoning image's own latent tokens run through the
trained expert (a cached prefix gives wrong gradients).

Legend: B chains, P prompts, W window steps, V = W + 1, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gvcot.chain import Chain
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel
from gvcot.types import ImagePhase, Trajectory
from rollout import sde
from rollout.config import RolloutConfig


@dataclass(kw_only=True, slots=True)
class Replay:
    """What a policy says of the window steps of one phase."""

    logprob_BW: Tensor
    """fp32, comparable to `ImagePhase.logprob_BW`."""

    velocity_BWND: Tensor
    """The policy's velocities at the window's states."""

    mean_BWND: Tensor
    """fp32 means of its transitions."""

    std_BW: Tensor
    """fp32 standard deviations of its transitions; they don't depend on the policy."""

    dt_BW: Tensor
    """fp32 step sizes in sigma, negative."""

    def detached(self) -> Replay:
        """The same numbers as constants."""
        return Replay(**{f.name: getattr(self, f.name).detach() for f in fields(self)})


@dataclass(kw_only=True, slots=True)
class States:
    """Noisy states of one image at which a policy is asked for its velocity."""

    x_BWND: Tensor
    """The states."""

    t_BW: Tensor
    """Their noise levels."""


def window_states(trajectory: Trajectory) -> dict[str, States]:
    """The states at which the stochastic steps of each image began."""
    out = {}
    for phase in trajectory.phases:
        assert isinstance(phase, ImagePhase), "only image phases are replayed"
        window = phase.sigmas[phase.window.start : phase.window.start + phase.window.size]
        x_BWND = phase.latents_BVND[:, : phase.window.size]
        out[phase.name] = States(x_BWND=x_BWND, t_BW=window.expand(len(x_BWND), -1))
    return out


def sequences(
    chain: Chain, trajectory: Trajectory, prompt_B: Tensor, rows: Tensor, states: Mapping[str, States]
) -> list[list[Segment]]:
    """The packed sequences of some chains.

    Args:
        chain: which segments stand where.
        trajectory: its condition has one row per prompt; its images are what later phases see.
        prompt_B: the prompt (row of the condition) of each chain.
        rows: indices of the chains to replay.
        states: phase name -> the noisy states to stand in its place.
    """
    return [_sequence(chain, trajectory, int(prompt_B[row]), int(row), states) for row in rows]


def _sequence(
    chain: Chain, trajectory: Trajectory, prompt: int, row: int, states: Mapping[str, States]
) -> list[Segment]:
    segments = chain.prefix(trajectory.condition, prompt)
    for phase in trajectory.phases:
        assert isinstance(phase, ImagePhase), "only image phases are replayed"
        noisy = states[phase.name]
        for x_ND, t in zip(noisy.x_BWND[row], noisy.t_BW[row], strict=True):
            segments.append(Segment.noise(x_ND, t, phase.grid))
        if phase is not trajectory.phases[-1]:
            pixels = phase.feedback_vit_B3HW
            shown = None if pixels is None else pixels[row]
            segments += chain.feedback(phase.final_BND[row], shown, phase.grid)
    return segments


def velocities(
    model: UnifiedModel,
    chain: Chain,
    trajectory: Trajectory,
    prompt_B: Tensor,
    rows: Tensor,
    states: Mapping[str, States],
) -> dict[str, Tensor]:
    """What `model` (its `forward`) says at the given states: phase name -> (b, W, N, D), b = len(rows).

    Args: see `sequences`.
    """
    packed = pack(sequences(chain, trajectory, prompt_B, rows, states), model.config)
    velocity_MD = model(packed).velocity_MD
    out: dict[str, Tensor] = {}
    first = 0
    for phase in trajectory.phases:
        segments = range(first, first + states[phase.name].t_BW.shape[1])
        first = segments.stop
        out[phase.name] = torch.stack(
            [torch.stack([velocity_MD[slices[j]] for j in segments]) for slices in packed.noise_slices]
        )
    return out


def replay(
    model: UnifiedModel,
    chain: Chain,
    trajectory: Trajectory,
    prompt_B: Tensor,
    rows: Tensor,
    config: RolloutConfig,
) -> dict[str, Replay]:
    """Log-probs and velocities of the window steps under `model`, phase by phase.

    Args:
        model: the policy (or the reference); its `forward` is used.
        chain, trajectory, prompt_B, rows: see `sequences`.
        config: the sampler that drew the trajectory.

    Returns:
        Phase name -> (b, W) log-probs and (b, W, N, D) velocities, b = len(rows).
    """
    said = velocities(model, chain, trajectory, prompt_B, rows, window_states(trajectory))
    out = {}
    for phase in trajectory.phases:
        assert isinstance(phase, ImagePhase)
        out[phase.name] = replay_window(phase, rows, said[phase.name], config)
    return out


def replay_window(phase: ImagePhase, rows: Tensor, velocity_BWND: Tensor, config: RolloutConfig) -> Replay:
    """Transitions of a phase's window and log-probs of what was drawn, given velocities (b, W, N, D)."""
    first, size, num = phase.window.start, phase.window.size, len(rows)
    x_BWND, next_BWND = phase.latents_BVND[rows, :-1], phase.latents_BVND[rows, 1:]
    sigma_W, next_W = phase.sigmas[first : first + size], phase.sigmas[first + 1 : first + size + 1]
    move = sde.transition(
        x_BWND.flatten(0, 1),
        velocity_BWND.flatten(0, 1).float(),
        sigma_W.repeat(num),
        next_W.repeat(num),
        config.noise_level,
        float(phase.sigmas[1]),
        config.sampler,
    )
    logprob_B = sde.logprob(next_BWND.flatten(0, 1), move.mean_BND, move.std_B)
    return Replay(
        logprob_BW=logprob_B.view(num, size),
        velocity_BWND=velocity_BWND,
        mean_BWND=move.mean_BND.view_as(velocity_BWND),
        std_BW=move.std_B.view(num, size),
        dt_BW=(next_W - sigma_W).expand(num, size),
    )
