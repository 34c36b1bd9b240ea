"""Configuration of a reinforcement-learning run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gvcot.data.pairs.config import PairsConfig
from gvcot.data.scenes.levels import WorldConfig
from gvcot.data.scenes.splits import Split
from gvcot.errors import ConfigError, closest
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.config import ImagesConfig
from gvcot.types import ChainConfig, GuidanceConfig
from rewards.config import RewardConfig
from rollout.config import RolloutConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptConfig:
    """What is trained on: scenes, an endless stream that is never stored, or a dataset in seeded epochs."""

    pairs: PairsConfig | None = None
    """A dataset of image pairs; None: Scenes. Targets are used where there are some."""

    seed: int = 1
    """World seed; another one than the warm start's gives scenes that it has not seen. Of a dataset, the seed
    of its order."""

    size: int = 64
    """Pixels per side."""

    world: WorldConfig = field(default_factory=WorldConfig)
    """How hard the scenes are, and which tasks they have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdvantageConfig:
    """From raw scores to one advantage per phase."""

    normalize: Literal["component", "sum", "geometric_mean"] = "component"
    """What is centred within its group and divided by its spread: each component before they are weighted and
    summed (GDPO), the weighted mean of the scores (GRPO), or their weighted geometric mean, which is small
    where any of them is."""

    std: Literal["group", "batch", "none"] = "group"
    """What a component's centred scores are divided by."""

    std_floor: float = 0.05
    """Smallest divisor: nearly constant groups are not blown up."""

    clamp: float = 5.0
    """Largest absolute advantage of a component."""

    credit: Literal["causal", "broadcast", "factorised"] = "causal"
    """Which reward trains which phase; see `rl.credit`."""

    baseline: Literal["group", "upstream"] = "group"
    """"upstream" takes off what the rewards of earlier phases predict; see `rl.credit`."""

    phase_weights: dict[str, float] = field(default_factory=dict)
    """Weight of a phase's advantage, 1 where not named. 0 leaves the phase to the anchor (`loss.kl_coef`)."""

    whiten: bool = False
    """Whiten each phase's summed advantage over the batch (GDPO)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The loss of the objective `reverse_window`, and what holds the policy back with any objective."""

    name: Literal["grpo_clip", "grpo_guard", "flow_dppo"] = "grpo_clip"
    clip_range: float = 1e-4
    """Clip range of the ratio, or the divergence threshold of flow_dppo. Log-probs are means over the
    latent's values, hence the small numbers."""

    kl_coef: float = 0.0
    """Weight of the velocity MSE to the starting policy; above 0 it costs one more forward."""

    updates_per_rollout: int = 1
    """Optimiser steps on each rollout."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NFTConfig:
    """Of the objectives `diffusion_nft` and, but for the scale and beta, `rejection`."""

    num_times: int = 2
    """Noise levels per image and step."""

    shift: float = 8.0
    """Shift of these times towards noise, where the place of the region is decided."""

    advantage_scale: float = 5.0
    """Advantages of this size count as entirely good or bad."""

    beta: float = 1.0
    """How far the implicit policies are put apart; without effect at one update per rollout."""

    def __post_init__(self) -> None:
        if self.num_times < 1 or self.advantage_scale <= 0 or self.beta <= 0:
            raise ConfigError(
                "nft: expected num_times of at least 1, advantage_scale and beta above 0; got "
                f"{self.num_times}, {self.advantage_scale}, {self.beta}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RLOptimConfig:
    """AdamW on fp32 master weights."""

    lr: float = 1e-4
    warmup_steps: int = 5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    """Maximum L2 norm of the gradient."""

    train: Literal["all", "generation", "upper"] = "all"
    """Which parameters move; see `gvcot.model.parts`."""

    ema_decay: float = 0.9
    """Moving average of the weights; what is evaluated and saved as the result. 0: the weights themselves."""

    micro_batch: int = 24
    """Chains per forward and backward; bounds memory, does not change the gradient."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardWorkersConfig:
    """Where rewards are computed: by the policy workers, or by workers of their own while rollouts go on."""

    num_workers: int = 0
    """Reward workers; 0: each policy worker scores the chains that it drew."""

    cpus_per_worker: float = 0.5
    """CPUs reserved for each; a fraction, or 0, where a reward mostly waits for a judge. It has one thread
    for each whole one, and at least one."""

    gpus_per_worker: float = 0.0
    chunks: int = 2
    """Parts that a step's prompts are drawn in; each is scored while the next one is drawn. The policy does
    not move meanwhile, so all chains are on-policy."""

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.chunks < 1 or self.cpus_per_worker < 0 or self.gpus_per_worker < 0:
            raise ConfigError(
                "reward_workers: expected num_workers, cpus_per_worker and gpus_per_worker of at least 0 and "
                f"chunks of at least 1; got {self.num_workers}, {self.cpus_per_worker}, "
                f"{self.gpus_per_worker} and {self.chunks}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where the workers run."""

    num_workers: int = 2
    """Policy workers (data parallel, FSDP2)."""

    cpus_per_worker: int = 1
    """CPUs and torch threads of each."""

    sharding: Literal["fsdp2", "replicate"] = "fsdp2"
    """How several workers hold the policy: sharded (FSDP2), or whole on each with averaged gradients."""

    gpus_per_worker: int = 0
    address: str | None = None
    """A running Ray cluster; None starts Ray on this machine."""

    num_nodes: int = 1
    """Machines of the cluster that the workers are spread over, evenly."""

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.num_workers % self.num_nodes:
            raise ConfigError(
                f"cluster: {self.num_workers} workers can't be spread evenly over {self.num_nodes} machines; "
                "give num_nodes a divisor of num_workers"
            )
        if self.num_nodes > 1 and self.address is None:
            raise ConfigError(
                f"cluster.num_nodes={self.num_nodes} needs a Ray cluster: give its address as "
                "cluster.address (`ray start --head` says it)"
            )


Probe = Literal["shuffled_x_cot", "true_x_cot", "counterfactual_x_cot"]
"""Which reasoning image the edit is drawn after, instead of the model's own; see `rl.probes`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RLEvalConfig:
    """Evaluation on a split of Scenes, or on a dataset, by plain ODE sampling."""

    every: int = 50
    """Training steps between evaluations; 0: none in between. There is always one before and one after."""

    pairs: PairsConfig | None = None
    """A dataset of image pairs to evaluate on; None: a split of Scenes, whatever is trained on."""

    split: Split = "val"
    num_samples: int = 512
    """Of a dataset, its first good ones."""

    world: WorldConfig | None = None
    """The world that is evaluated on; None: the one that is trained on."""

    num_steps: int | None = None
    """ODE steps per image; None: as many as in rollouts."""

    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    """Classifier-free guidance; none by default, as in rollouts."""

    probes: tuple[Probe, ...] = ("shuffled_x_cot", "true_x_cot")
    """Also draw edits after these reasoning images, and score them: each costs most of another evaluation, a
    judge's calls included."""

    batch: int = 64
    """Samples drawn at once on each worker."""

    @property
    def name(self) -> str:
        """What the evaluations are called: after the split, or the dataset."""
        return self.split if self.pairs is None else self.pairs.name


@dataclass(frozen=True, kw_only=True, slots=True)
class AlarmConfig:
    """Rings when a logged curve leaves its bounds; see `rl.alarms`."""

    metric: str
    """A logged name, such as "canary/area_ratio" of each step's rollouts, or "eval/held_out_judge" of
    evaluations, which are always of the same scenes and so far less noisy, but fewer."""

    minus: str | None = None
    """Another logged name, which is subtracted first."""

    above: float | None = None
    """Rings above this."""

    below: float | None = None
    """Rings below this."""

    relative_to: Literal["zero", "start", "best"] = "zero"
    """What the limits mean: the smoothed value itself, or its change as a share of where it began or of the
    best it has been (-0.05: five percent less)."""

    absolute: bool = False
    """Changes are differences instead of shares; for curves that may begin near 0, as differences do."""

    span: int = 20
    """Values of smoothing (exponential); an alarm is silent during its first span. 1: none."""

    patience: int = 10
    """Values in a row beyond the limit before it rings."""

    def __post_init__(self) -> None:
        if self.above is None and self.below is None:
            raise ConfigError(f"alarms: the one on {self.metric} has no limit; give it above, below or both")
        if self.span < 1 or self.patience < 1:
            raise ConfigError(
                f"alarms: span and patience of the one on {self.metric} must be at least 1; "
                f"got {self.span} and {self.patience}"
            )


def default_alarms() -> dict[str, AlarmConfig]:
    """What a policy must not do, whatever its rewards. The limits are several times what sound runs of the
    tiny recipe show."""
    return {
        "paint_grows": AlarmConfig(metric="canary/area_ratio", relative_to="start", above=0.3, below=-0.3),
        "overlay_leaks": AlarmConfig(metric="canary/overlay_leak", above=0.01),
        "saturates": AlarmConfig(metric="canary/saturation", above=0.02),
        "whitens": AlarmConfig(metric="canary/white", above=0.02),
        "roughness_drifts": AlarmConfig(
            metric="canary/roughness", relative_to="start", above=0.2, below=-0.2
        ),
        "edits_fade": AlarmConfig(metric="canary/change_inside", relative_to="start", below=-0.4),
        "groups_collapse": AlarmConfig(metric="canary/group_spread", relative_to="start", below=-0.6),
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class RLConfig:
    """One RL run."""

    name: str
    """Run name; the run directory is `runs/<name>`."""

    model: str
    """Checkpoint folder to start from; "warm_start" is the shipped tiny one."""

    steps: int
    """Training steps (a rollout and its updates each)."""

    prompts_per_step: int
    """P."""

    group_size: int
    """G, chains per prompt."""

    rewards: dict[str, RewardConfig]
    """Components by name."""

    chain: ChainConfig = field(default_factory=ChainConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    """Sizes at which the model takes images in; null: as its folder says."""

    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    data: PromptConfig = field(default_factory=PromptConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    objective: Literal["reverse_window", "diffusion_nft", "rejection"] = "reverse_window"
    """What is trained on; see `rl.objectives`."""

    lora: LoRAConfig | None = None
    """Train low-rank adapters instead of the weights of `optim.train`; the result is a plain model again."""

    compute: ComputeConfig = field(default_factory=ComputeConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    nft: NFTConfig = field(default_factory=NFTConfig)
    optim: RLOptimConfig = field(default_factory=RLOptimConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    reward_workers: RewardWorkersConfig = field(default_factory=RewardWorkersConfig)
    eval: RLEvalConfig = field(default_factory=RLEvalConfig)

    alarms: dict[str, AlarmConfig | None] = field(default_factory=dict)
    """Alarms beside, or instead of, the default ones (see `default_alarms`); null silences a default one."""

    stop_on: tuple[str, ...] = ()
    """Alarms that end training when they ring; the run saves, evaluates and exports as at its end."""

    max_missing_share: float = 0.5
    """The run stops when a larger share of a component's scores is missing."""

    max_logprob_gap: float = 1e-3
    """The run stops when rollout and replay disagree by more, as mean |difference| of log-probs."""

    shuffle_rewards: bool = False
    """A control: scores are permuted within each group, so that nothing can be learned."""

    max_seconds: float | None = None
    """Stop training (and evaluate) after this many seconds of training steps; None: no limit."""

    save_every: int = 1
    panel_every: int = 25
    """Steps between image panels of training rollouts."""

    seed: int = 0

    def __post_init__(self) -> None:
        if not self.rewards:
            raise ConfigError(
                "rewards: expected at least one component, such as rewards.mask_iou.type=mask_iou"
            )
        if not any(r.weight > 0 for r in self.rewards.values()):
            raise ConfigError(
                "rewards: every weight is 0, so nothing would be trained; give one a weight above 0"
            )
        if self.group_size < 2:
            raise ConfigError(
                f"group_size: a group needs at least 2 chains to compare; got {self.group_size}"
            )
        if self.prompts_per_step % self.cluster.num_workers:
            raise ConfigError(
                f"prompts_per_step={self.prompts_per_step} can't be dealt evenly to "
                f"cluster.num_workers={self.cluster.num_workers}; use a multiple"
            )
        parts = self.reward_workers.chunks * self.cluster.num_workers
        if self.reward_workers.num_workers and self.prompts_per_step % parts:
            raise ConfigError(
                f"prompts_per_step={self.prompts_per_step} can't be cut into "
                f"reward_workers.chunks={self.reward_workers.chunks} parts for "
                f"cluster.num_workers={self.cluster.num_workers}; use a multiple of {parts}"
            )
        if self.reward_workers.num_workers > self.reward_workers.chunks:
            raise ConfigError(
                f"reward_workers: num_workers={self.reward_workers.num_workers} share "
                f"chunks={self.reward_workers.chunks}, so some would never work; use at least as many chunks"
            )
        plain = self.rollout.noise_level == 0 or self.rollout.window_size == 0
        if self.objective == "reverse_window" and plain:
            raise ConfigError(
                "rollout: noise_level=0 or window_size=0 is plain ODE sampling, which has no log-probs to "
                "train on; use noise_level=0.7 and window_size=2, or objective=diffusion_nft"
            )
        if self.objective != "reverse_window" and self.rollout.initial_noise == "group":
            raise ConfigError(
                f"rollout.initial_noise=group: objective={self.objective} samples by the ODE, so that all "
                "chains of a group would be the same; use rollout.initial_noise=chain, or "
                "objective=reverse_window"
            )
        for name in self.stop_on:
            if name not in self.active_alarms():
                raise ConfigError(f"stop_on: no alarm {name!r}; {closest(name, self.active_alarms())}")
        if self.lora is not None and self.optim.train != "all":
            raise ConfigError(
                f"lora: adapters are trained instead of the part that optim.train={self.optim.train} names; "
                "leave optim.train out"
            )
        if self.compute.dtype != "float32" and self.cluster.sharding != "fsdp2":
            raise ConfigError(
                f"compute.dtype={self.compute.dtype} goes through FSDP2; set cluster.sharding=fsdp2"
            )
        if self.loss.updates_per_rollout < 1:
            raise ConfigError(
                f"loss.updates_per_rollout: expected at least 1; got {self.loss.updates_per_rollout}"
            )

    def active_alarms(self) -> dict[str, AlarmConfig]:
        """The default alarms and the recipe's own, by name."""
        chosen: dict[str, AlarmConfig | None] = {**default_alarms(), **self.alarms}
        return {name: alarm for name, alarm in chosen.items() if alarm is not None}
