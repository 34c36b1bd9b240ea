"""Which judges are asked, and how. Does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gvcot.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """One model behind an OpenAI-compatible server.

    Raises:
        ConfigError: a URL without http(s), or an empty model.
    """

    base_url: str
    """Address of the API with its version, e.g. "http://localhost:8000/v1"."""

    model: str
    """Name under which the server serves the model. Scores are cached under it, so give different weights
    different names."""

    api_key_env: str | None = None
    """Environment variable that holds the API key; None for servers that ask for none. The key itself never
    stands in a recipe."""

    readout: Literal["auto", "digits", "json"] = "auto"
    """How an answer is read: "digits" is the expected score over the log-probs of one digit, "json" an
    integer in an answer of fixed form. "auto" finds out at start what the server can do, digits first."""

    send_metadata: bool = False
    """Send the sample's id, the aspect and the phase in the request's `metadata`, for servers that can use
    them; many refuse the field."""

    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of every request's body beside ours, or instead of them; null leaves one of ours out. For what
    some servers insist on or understand: {max_tokens: null, max_completion_tokens: 512}."""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(
                f"base_url is {self.base_url!r}, expected an address such as 'http://localhost:8000/v1'"
            )
        if not self.model:
            raise ConfigError(f"the endpoint {self.base_url} has an empty model; name the model it serves")


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """The options of the reward `vlm_judge`.

    Example:
        rewards:
          judge:
            type: vlm_judge
            options:
              endpoints: [{base_url: "http://localhost:8000/v1", model: qwen3-vl-8b}]
              cache: runs/judge.sqlite
              image_size: 448

    Raises:
        ConfigError: no endpoint, a number out of its range, several calls at temperature 0 or the aspect
            "checklist" without a list.
    """

    endpoints: tuple[EndpointConfig, ...]
    """The first is asked; each further one only where those before it fail."""

    aspect: Literal["both", "sc", "pq", "checklist"] = "both"
    """What the score is: "both" is sqrt(SC * PQ) / 10, "sc" semantic consistency / 10, "pq" perceptual
    quality / 10, "checklist" the share of yes. Other aspects aren't asked, but a checklist always is where
    one is given."""

    checklist: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Yes/no questions by task name, phrased so that yes is good; each costs `calls` requests. Tasks without
    questions have no checklist score."""

    mask_context: bool = False
    """Also show the source with the outline of the true region, for semantic consistency and checklists."""

    image_size: int | None = None
    """Enlarge images whose shorter side is below this many pixels, by the smallest whole factor that reaches
    it (nearest neighbour); None sends them as they are. VLMs see little in images of 64 pixels."""

    calls: int = 1
    """Requests per question, with different seeds, whose scores are averaged."""

    temperature: float = 0.0
    """Sampling temperature of the judge; above 0 where `calls` is above 1."""

    min_mass: float = 0.5
    """Smallest probability of all acceptable answers together for log-probs to be believed."""

    max_concurrency: int = 16
    """Requests in flight at once, in each process that scores."""

    deadline_s: float = 120.0
    """Seconds for all calls and retries of one sample, from when it is taken up; what isn't answered then is
    missing."""

    timeout_s: float = 60.0
    """Seconds for one request."""

    max_attempts: int = 4
    """Tries of one request at one endpoint, the first included."""

    backoff_s: float = 1.0
    """Mean seconds before the second try, doubled for each further one; drawn evenly from 0 to twice the
    mean. A server's Retry-After counts where it asks for more."""

    rest_s: float = 30.0
    """Seconds for which an endpoint that failed all tries is asked last."""

    cache: Path | None = None
    """SQLite file of scores, on a local disk; may be shared by processes and runs. None keeps scores in
    memory only, so a resumed run pays again."""

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise ConfigError("endpoints is empty; name at least one, e.g. {base_url: ..., model: ...}")
        for name in ("calls", "max_concurrency", "max_attempts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected an integer >= 1")
        for name in ("deadline_s", "timeout_s", "backoff_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a number of seconds > 0")
        for name in ("temperature", "rest_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected a finite number >= 0")
        if not 0 < self.min_mass <= 1:
            raise ConfigError(f"min_mass is {self.min_mass}, expected a probability in (0, 1]")
        if self.image_size is not None and self.image_size < 1:
            raise ConfigError(f"image_size is {self.image_size}, expected pixels >= 1, or null")
        if self.calls > 1 and self.temperature == 0:
            raise ConfigError(
                f"calls is {self.calls} but temperature 0, which asks for the same answer each time; "
                "set temperature to e.g. 0.7, or calls to 1"
            )
        if self.aspect == "checklist" and not self.checklist:
            raise ConfigError("aspect is 'checklist' but there is none; give checklist: {task: [questions]}")
        for task, questions in self.checklist.items():
            if not questions:
                raise ConfigError(f"checklist.{task} has no questions; give some, or leave the task out")
