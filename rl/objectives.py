"""What a policy is asked about its own drawn chains, and the loss on what it says.

    reverse_window  chains are drawn with stochastic steps in a short window; the ratio of their
                    probabilities is trained (Flow-GRPO with MixGRPO's window; three losses)
    diffusion_nft   chains are drawn by the plain ODE; their images are noised afresh, and the velocity
                    there is trained towards good images and away from bad ones
    rejection       the same, on each group's best chain alone: best-of-G rejection fine-tuning (RAFT), a
                    control that takes no notice of what was bad

An objective owns its needs: how chains are sampled, what of them is revisited, and the loss. What it answers
with has `velocity_BWND` and `detached()`; the learner's anchor (KL) and its checks need no more.

Legend: B chains, b of them in a micro-batch, W states per image, N latent tokens, D values per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from gvcot.chain import Chain
from gvcot.model.unified import UnifiedModel
from gvcot.types import ImagePhase, Trajectory
from rl.config import LossConfig, RLConfig
from rl.losses.diffusion_nft import diffusion_nft
from rl.losses.flow_dppo import flow_dppo
from rl.losses.grpo_clip import grpo_clip
from rl.losses.grpo_guard import grpo_guard
from rl.losses.kl import normal_kl
from rollout.config import RolloutConfig
from rollout.renoise import Renoised, renoise
from rollout.replay import Replay, replay, velocities


@dataclass(kw_only=True, slots=True)
class Drawn:
    """Chains of one worker and step."""

    trajectory: Trajectory
    """B chains; the condition has one row per prompt."""

    prompt_B: Tensor
    """int64, the condition's row of each chain."""

    chain_seeds_B: list[int]
    """A seed per chain, for randomness of the update."""


class Said(Protocol):
    """What a policy says of one image of each chain."""

    @property
    def velocity_BWND(self) -> Tensor:
        """(b, W, N, D)."""
        ...

    def detached(self) -> Any:
        """The same numbers as constants."""
        ...


class Objective(Protocol):
    """One way to train on drawn chains."""

    @property
    def sampling(self) -> RolloutConfig:
        """How it wants chains to be drawn."""
        ...

    def ask(self, model: UnifiedModel, drawn: Drawn, rows: Tensor) -> Mapping[str, Any]:
        """Phase name -> what `model` says of some chains."""
        ...

    def loss(
        self, phase: ImagePhase, rows: Tensor, now: Any, sampled: Any, advantage_B: Tensor, mask_BW: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The elementwise loss (b, W) of one phase, and its metrics.

        Args:
            phase: of all chains.
            rows: the b chains of the micro-batch.
            now, sampled: from `ask`, of the policy that is trained and of the one that sampled.
            advantage_B: (b,).
            mask_BW: False where there is no signal.
        """
        ...


def build_objective(config: RLConfig, chain: Chain) -> Objective:
    """The configured objective."""
    match config.objective:
        case "reverse_window":
            return ReverseWindow(config, chain)
        case "diffusion_nft":
            return DiffusionNFT(config, chain)
        case "rejection":
            return Rejection(config, chain)


class ReverseWindow:
    """The probability ratio of the stochastic steps."""

    def __init__(self, config: RLConfig, chain: Chain) -> None:
        self.sampling = config.rollout
        self._loss, self._chain = config.loss, chain

    def ask(self, model: UnifiedModel, drawn: Drawn, rows: Tensor) -> dict[str, Replay]:
        """See `Objective`."""
        return replay(model, self._chain, drawn.trajectory, drawn.prompt_B, rows, self.sampling)

    def loss(
        self,
        phase: ImagePhase,
        rows: Tensor,
        now: Replay,
        sampled: Replay,
        advantage_B: Tensor,
        mask_BW: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective`."""
        loss_BW, metrics = policy_loss(self._loss, now, sampled, advantage_B, mask_BW)
        gap_BW = (now.logprob_BW.detach() - phase.logprob_BW[rows]).abs()
        return loss_BW, metrics | {"logprob_gap": gap_BW.mean(), "logprob_gap_max": gap_BW.max()}


@dataclass(kw_only=True, slots=True)
class Velocities:
    """Velocities at images noised afresh, and those that lead back to the images."""

    velocity_BWND: Tensor
    target_BWND: Tensor

    def detached(self) -> Velocities:
        """The same numbers as constants."""
        return Velocities(velocity_BWND=self.velocity_BWND.detach(), target_BWND=self.target_BWND)


class DiffusionNFT:
    """DiffusionNFT on every image of a chain."""

    def __init__(self, config: RLConfig, chain: Chain) -> None:
        self.sampling = replace(config.rollout, noise_level=0.0, window_size=0)
        self._config, self._chain = config.nft, chain
        self._noised: tuple[Trajectory, dict[str, Renoised]] | None = None

    def ask(self, model: UnifiedModel, drawn: Drawn, rows: Tensor) -> dict[str, Velocities]:
        """See `Objective`. Times and noise of a trajectory are the same at every call."""
        if self._noised is None or self._noised[0] is not drawn.trajectory:
            options = self._config
            noised = renoise(drawn.trajectory, drawn.chain_seeds_B, options.num_times, options.shift)
            self._noised = drawn.trajectory, noised
        noised = self._noised[1]
        states = {name: image.states for name, image in noised.items()}
        said = velocities(model, self._chain, drawn.trajectory, drawn.prompt_B, rows, states)
        return {
            name: Velocities(velocity_BWND=v_BWND, target_BWND=noised[name].target_BWND[rows])
            for name, v_BWND in said.items()
        }

    def loss(
        self,
        phase: ImagePhase,
        rows: Tensor,
        now: Velocities,
        sampled: Velocities,
        advantage_B: Tensor,
        mask_BW: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective`."""
        return diffusion_nft(
            now.velocity_BWND,
            sampled.velocity_BWND,
            now.target_BWND,
            advantage_B,
            beta=self._config.beta,
            scale=self._config.advantage_scale,
        )


class Rejection(DiffusionNFT):
    """Flow matching on the chains that are kept (`rl.credit.best_of_group`).

    Source: Dong et al. 2023, RAFT, arXiv:2304.06767, with one round a step.
    """

    def loss(
        self,
        phase: ImagePhase,
        rows: Tensor,
        now: Velocities,
        sampled: Velocities,
        advantage_B: Tensor,
        mask_BW: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Objective`."""
        error_BW = (now.velocity_BWND.float() - now.target_BWND).square().mean(dim=(2, 3))
        return error_BW, {"error": error_BW.detach().mean()}


def policy_loss(
    config: LossConfig, now: Replay, sampled: Replay, advantage_B: Tensor, mask_BW: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The elementwise loss (b, W) of the configured objective, with its metrics and the exact KL to the
    policy that sampled ("kl_old")."""
    kl_BW = normal_kl(
        now.mean_BWND.flatten(0, 1), sampled.mean_BWND.flatten(0, 1), now.std_BW.flatten()
    ).view_as(now.logprob_BW)
    common = (now.logprob_BW, sampled.logprob_BW, advantage_B, config.clip_range, mask_BW)
    match config.name:
        case "grpo_clip":
            loss_BW, metrics = grpo_clip(*common)
        case "grpo_guard":
            loss_BW, metrics = grpo_guard(*common, kl_old_BW=kl_BW, std_BW=now.std_BW, dt_BW=now.dt_BW)
        case "flow_dppo":
            loss_BW, metrics = flow_dppo(*common, kl_old_BW=kl_BW)
    return loss_BW, metrics | {"kl_old": kl_BW.detach().mean()}
