"""What the scenes judge knows, how it errs and how it fails. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from gvcot.data.scenes.levels import WorldConfig
from gvcot.errors import ConfigError, closest

FaultKind = Literal["timeout", "429", "500", "truncated", "garbage", "nan", "wrong_schema", "refusal", "html"]
"""How an answer can fail; docs/scenes-judge.md says what a client sees."""

FAULT_KINDS: tuple[str, ...] = get_args(FaultKind)

BlindSpot = Literal["outside", "vivid"]
"""Flaws that a policy can exploit. "outside": changes outside the change mask go unnoticed. "vivid": extreme
colours pass for quality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesJudgeConfig:
    """A judge of one world. The default errs in nothing.

    Raises:
        ConfigError: a size that the world can't have, or a setting out of its range.
    """

    world: WorldConfig = field(default_factory=WorldConfig)
    """The world that the samples come from, as in the run's `data.world`: their ids alone don't hold it."""

    size: int | None = None
    """Pixels per side of the samples; None: the smallest that shows the world, as in `scenes.generate`."""

    model: str = "scenes-judge"
    """Name under which clients ask for it."""

    seed: int = 0
    """Of noise, latency and faults."""

    noise: float = 0.0
    """Standard deviation of the error of a score, on the scale 0 to 10. The same question about the same
    edit always gets the same error."""

    bias: float = 0.0
    """Added to every score, on the scale 0 to 10; results are clipped to it."""

    spread: float = 0.2
    """How unsure a one-digit answer is, 0 to 1: the share of its distribution that is binomial. The rest lies
    on the two digits around the score. The expectation is the score for every spread."""

    blind_spots: tuple[BlindSpot, ...] = ()
    """Flaws to study reward hacking with; none by default."""

    latency_s: float = 0.0
    """Mean seconds that a request waits before it is answered."""

    latency_jitter_s: float = 0.0
    """Latencies are uniform within this many seconds of the mean."""

    faults: dict[str, float] = field(default_factory=dict)
    """Kind of fault -> its share of the requests (see `FaultKind`); none by default."""

    hang_s: float = 600.0
    """Seconds after which a request that meets a "timeout" is given up with a 504, unless its client left."""

    retry_after_s: int = 1
    """Seconds that a "429" asks its client to wait."""

    source_tolerance: float = 0.1
    """Largest root mean squared difference, as a share of the pixel range, between the image before that a
    client sends and the sample's source; .1 lets a codec's round trip pass, and no other scene."""

    cache_size: int = 256
    """Samples kept, at some 0.2 MB each; a request for another one takes a few milliseconds longer."""

    def __post_init__(self) -> None:
        smallest = self.world.resolve().size
        if self.size is not None and (self.size < smallest or self.size % 16):
            raise ConfigError(
                f"scenes judge: size is {self.size}, expected a multiple of 16 that is at least {smallest} "
                "for this world; take the size of the run's images"
            )
        for name in ("noise", "latency_s", "latency_jitter_s", "hang_s", "retry_after_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"scenes judge: {name} is {getattr(self, name)}, expected a number >= 0")
        if not math.isfinite(self.bias):
            raise ConfigError(f"scenes judge: bias is {self.bias}, expected a finite number")
        if not 0 <= self.spread <= 1:
            raise ConfigError(f"scenes judge: spread is {self.spread}, expected a share from 0 to 1")
        if not 0 < self.source_tolerance <= 1:
            raise ConfigError(
                f"scenes judge: source_tolerance is {self.source_tolerance}, expected a number in (0, 1]"
            )
        if self.cache_size < 1:
            raise ConfigError(f"scenes judge: cache_size is {self.cache_size}, expected at least 1")
        check_faults(self.faults)


def check_faults(faults: Mapping[str, float]) -> None:
    """Hold a table of faults to known kinds and to shares that can be drawn together.

    Raises:
        ConfigError: an unknown kind, a share outside 0 to 1, or shares that sum to more than 1.
    """
    for kind, share in faults.items():
        if kind not in FAULT_KINDS:
            raise ConfigError(f"scenes judge: unknown fault {kind!r}; {closest(kind, FAULT_KINDS)}")
        if not 0 <= share <= 1:
            raise ConfigError(f"scenes judge: faults.{kind} is {share}, expected a share from 0 to 1")
    if sum(faults.values()) > 1 + 1e-9:
        raise ConfigError(
            f"scenes judge: the shares of faults sum to {sum(faults.values()):.3g}, at most 1 can be drawn"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VLLMConfig:
    """A vision-language model served by vLLM."""

    model: str
    """Folder of the model in Hugging Face's format, or its name on the hub."""

    name: str = "judge"
    """Name under which clients ask for it."""

    python: str = ".venv-vllm/bin/python"
    """Interpreter of the environment with vLLM; relative to the checkout, where `make vllm` builds it."""

    dtype: str = "auto"
    max_model_len: int = 4096
    """Tokens of a prompt with its images and answer; more are refused."""

    max_num_seqs: int = 64
    """Requests that are answered at once; what comes above it waits."""

    images_per_prompt: int = 3
    """Before, after, and the region where a judge is shown it."""

    enforce_eager: bool = False
    """Without CUDA graphs: starts sooner, answers more slowly."""

    seed: int = 0
    start_timeout_s: float = 600.0
    """Seconds that loading may take."""

    args: tuple[str, ...] = ()
    """Further arguments of vLLM's server, such as ["--tensor-parallel-size", "2"]."""

    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the server, such as {VLLM_CPU_KVCACHE_SPACE: "1"}."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "images_per_prompt"):
            if getattr(self, name) < 1:
                raise ConfigError(f"vllm.{name} is {getattr(self, name)}, expected at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """What `gvcot judge serve` starts: one of the two kinds."""

    scenes: ScenesJudgeConfig | None = None
    """A judge that measures images of Scenes."""

    vllm: VLLMConfig | None = None
    """A model."""

    host: str = "127.0.0.1"
    port: int = 8100

    def __post_init__(self) -> None:
        if (self.scenes is None) == (self.vllm is None):
            raise ConfigError("judge: give exactly one of scenes and vllm")
