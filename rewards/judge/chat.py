"""The OpenAI chat protocol as the scenes judge speaks it: requests in, answers in the form that they ask for.

Legend: H W pixels.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, Field

from rewards.judge.measure import digit_probabilities
from rewards.judge.serve_config import ScenesJudgeConfig

PROBE = "probe"
"""Sample id of a client's test question."""


class RequestFailed(Exception):
    """A request that gets an error in OpenAI's form."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class Message(BaseModel):
    """One message of a chat: text, or parts that are texts and images."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class ChatRequest(BaseModel):
    """What is read of a request. Other fields (temperature, max_tokens, ...) change nothing."""

    model: str
    messages: list[Message] = Field(min_length=1)
    metadata: dict[str, str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    n: Literal[1] | None = None
    stream: Literal[False] | None = None

    def text(self) -> str:
        """All text of all messages."""
        whole = [m.content for m in self.messages if isinstance(m.content, str)]
        return "\n".join(whole + [str(part.get("text", "")) for part in self._parts("text")])

    def image_urls(self) -> list[str]:
        """URLs of the images, in order."""
        images = [part.get("image_url") for part in self._parts("image_url")]
        return [str(image.get("url", "")) if isinstance(image, dict) else "" for image in images]

    def sample_id(self) -> str:
        """The sample that is asked about; `PROBE` where the request names none."""
        return (self.metadata or {}).get("sample_id", PROBE)

    def aspect(self) -> str | None:
        """What is asked about; None where the request doesn't say."""
        return (self.metadata or {}).get("aspect")

    def _parts(self, kind: str) -> list[dict[str, Any]]:
        parted = [m.content for m in self.messages if isinstance(m.content, list)]
        return [part for parts in parted for part in parts if part.get("type") == kind]


class Answer(NamedTuple):
    """One message of the judge."""

    content: str | None

    logprobs: list[tuple[str, float]] | None = None
    """Of the first token, likeliest first."""

    refusal: str | None = None


def read_image(url: str, size: int) -> np.ndarray:
    """uint8 (size, size, 3) from a data URL; larger images are averaged down by a whole factor.

    Raises:
        RequestFailed: no data URL, not an image, or of another size.
    """
    head, comma, data = url.partition(",")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise RequestFailed(400, f"image URL {url[:40]!r}: expected a data URL, data:image/png;base64,...")
    try:
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as file:
            image = file.convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise RequestFailed(400, f"cannot read an image: {error}") from error
    if image.width != image.height or image.width % size:
        raise RequestFailed(
            400,
            f"an image is {image.width}x{image.height} px, expected {size}x{size} or a multiple of it; start "
            "the server with the size of the run's images",
        )
    return np.asarray(image.reduce(image.width // size))


def say(request: ChatRequest, value: float, reason: str, config: ScenesJudgeConfig) -> Answer:
    """Words the answer in the form that the request asks for.

    Args:
        request: what says the form.
        value: in [0, 1], or NaN.
        reason: for forms that hold one.
        config: of the judge.

    Raises:
        RequestFailed: the form is not one that this judge can give.
    """
    form = _form(request)
    if form == "json":
        return Answer(json.dumps(_fill(request, value, reason)))
    if form == "text":
        said = _yes(value) if request.aspect() == "checklist" else f"Score: {10 * value:.1f}"
        return Answer(f"{said}\n{reason}")
    if form == "yes_no":
        tokens = {"yes": value, "no": 1 - value}
    else:
        probabilities = digit_probabilities(10 * value, config.spread)
        tokens = {str(digit): p for digit, p in enumerate(probabilities.tolist())}
    likely = sorted(tokens, key=lambda token: -tokens[token])
    logprobs = [(token, math.log(tokens[token])) for token in likely if tokens[token] != 0]
    content = "nan" if math.isnan(value) else likely[0]
    return Answer(content, logprobs[: request.top_logprobs or 1] if request.logprobs else None)


def _form(request: ChatRequest) -> Literal["digit", "yes_no", "json", "text"]:
    """The form of answer that a request asks for: by grammar, by schema, by log-probs, or none."""
    grammar = {name: value for name, value in (request.structured_outputs or {}).items() if value is not None}
    if grammar == {"regex": "[0-9]"}:
        return "digit"
    if grammar in ({"regex": "(yes|no)"}, {"choice": ["yes", "no"]}):
        return "yes_no"
    if grammar:
        raise RequestFailed(
            400, f'structured_outputs is {grammar}; this judge knows regex "[0-9]" and regex "(yes|no)"'
        )
    if (request.response_format or {}).get("type") == "json_schema":
        if request.logprobs:
            raise RequestFailed(400, "this judge gives no logprobs of JSON; ask for one of the two")
        return "json"
    if not request.logprobs:
        return "text"
    return "yes_no" if request.aspect() == "checklist" else "digit"


def _fill(request: ChatRequest, value: float, reason: str) -> dict[str, Any]:
    """An instance of the request's JSON schema: its numbers, booleans and choices of yes and no say the value
    (numbers from 0 to 10), its other strings the reason."""
    schema = (request.response_format or {}).get("json_schema", {}).get("schema", {})
    filled: dict[str, Any] = {}
    for name, part in schema.get("properties", {}).items():
        kind = part.get("type")
        if kind == "integer":
            filled[name] = value if math.isnan(value) else round(10 * value)
        elif kind == "number":
            filled[name] = round(10 * value, 2)
        elif kind == "boolean":
            filled[name] = value >= 0.5
        elif kind == "string":
            filled[name] = _yes(value) if sorted(part.get("enum", ())) == ["no", "yes"] else reason
        else:
            raise RequestFailed(
                400,
                f"the JSON schema has {name!r} as {part}; expected integers, numbers, booleans or strings",
            )
    return filled


def _yes(value: float) -> str:
    return "yes" if value >= 0.5 else "no"
