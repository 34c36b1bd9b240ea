"""A judge for Scenes behind the OpenAI API: looks like a vision-language model, measures exactly.

    from rewards.judge.scenes_server import running
    from rewards.judge.serve_config import ScenesJudgeConfig

    with running(ScenesJudgeConfig(noise=0.5, faults={"429": 0.05})) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="none")

Clients name the sample and the question in a request's `metadata`; docs/scenes-judge.md has the protocol.
Does not import torch, so it starts in about a second.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import httpx
import numpy as np
import uvicorn
from cachetools import LRUCache
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from gvcot.config import decode, to_dict
from gvcot.data import scenes
from gvcot.errors import ConfigError, DataError, GvcotError, ResourceError
from gvcot.seeds import derive
from rewards.judge.chat import PROBE, Answer, ChatRequest, RequestFailed, read_image, say
from rewards.judge.measure import (
    Measures,
    Reference,
    measure,
    reference,
    rms_difference,
)
from rewards.judge.serve_config import ScenesJudgeConfig, check_faults

QUESTIONS: dict[str, Callable[[Measures], float]] = {
    "was the right thing changed?": lambda m: m.place,
    "is everything else unchanged?": lambda m: m.preservation,
    "is the edit the one that was asked for?": lambda m: m.accuracy,
    "does the image look clean?": lambda m: m.quality,
}
"""Questions of a checklist, in lower case, and the measure that answers each: its probability of "yes"."""

IMAGE_TOKENS = 256
"""What an image counts in the usage."""

GIBBERISH = "the the image image of of which ;; the"
REFUSAL = "I'm sorry, but I can't help with that."
WRONG_SCHEMA = '{"rating": "high"}'


class Judge:
    """Measures the images of requests and words the answers; knows nothing of HTTP or faults."""

    def __init__(self, config: ScenesJudgeConfig) -> None:
        self.config = config
        self._reference = lru_cache(config.cache_size)(self._make_reference)

    def answer(self, request: ChatRequest) -> Answer:
        """The answer to a request.

        Raises:
            RequestFailed: what the request asks for can't be given.
        """
        sample_id = request.sample_id()
        if sample_id == PROBE:
            return say(request, 0.5, "No sample is named, so this is neither good nor bad.", self.config)
        phase = (request.metadata or {}).get("phase", "x_edit")
        if phase != "x_edit":
            raise RequestFailed(400, f"metadata.phase is {phase!r}; this judge measures x_edit only")
        edit_HW3, ref = self._images(sample_id, request.image_urls())
        measures = measure(edit_HW3, ref, self.config.blind_spots)
        value = self._err(_value(request, measures), request, edit_HW3)
        return say(request, value, _reason(measures), self.config)

    def _images(self, sample_id: str, urls: list[str]) -> tuple[np.ndarray, Reference]:
        """The edit, and what it is measured against."""
        if len(urls) < 2:
            raise RequestFailed(400, f"got {len(urls)} images, expected at least two: before and after")
        ref = self._reference(sample_id)
        before_HW3, after_HW3 = (read_image(url, len(ref.source_HW3)) for url in (urls[0], urls[-1]))
        difference = rms_difference(before_HW3, ref.source_HW3)
        if difference > self.config.source_tolerance:
            raise RequestFailed(
                400,
                f"the first image is not the source of {sample_id}: they differ by {difference:.2f} of the "
                f"pixel range (rms), allowed are {self.config.source_tolerance}. The run's samples are "
                f"probably of another world, size or version of Scenes than here ({self._world()}): start "
                "the server with the run's data.world and image size. Or the image before doesn't come first",
            )
        return after_HW3, ref

    def _make_reference(self, sample_id: str) -> Reference:
        found = re.match(r"scenes/(\w+)/(\d+)/(\d+)(?:/|$)", sample_id)
        if found is None:
            raise RequestFailed(
                400, f"sample_id {sample_id!r} is not of Scenes; expected scenes/<split>/<seed>/<index>"
            )
        split, seed, index = found.groups()
        split = cast(scenes.Split, split)  # generate refuses unknown ones
        size, world = self.config.size, self.config.world
        try:
            sample = scenes.generate(int(seed), int(index), split=split, size=size, world=world)
            made = reference(sample)
        except DataError as error:
            raise RequestFailed(400, f"sample_id {sample_id!r}: {error}") from error
        if sample.sample_id != sample_id:
            raise RequestFailed(
                400,
                f"sample_id {sample_id!r} is of another world: in this server's ({self._world()}) it is "
                f"called {sample.sample_id!r}; start the server with the run's data.world",
            )
        return made

    def _world(self) -> str:
        size = self.config.size or self.config.world.resolve().size
        given = {name: value for name, value in to_dict(self.config.world).items() if value is not None}
        return ", ".join(f"{name}={value}" for name, value in {**given, "size": size}.items())

    def _err(self, value: float, request: ChatRequest, edit_HW3: np.ndarray) -> float:
        """The value with the configured bias and noise, clipped."""
        edit = hashlib.blake2b(edit_HW3.tobytes(), digest_size=8).hexdigest()
        asked = (request.sample_id(), request.aspect() or "", request.text(), edit)
        rng = np.random.default_rng(derive(self.config.seed, "noise", *asked))
        error = self.config.bias + self.config.noise * rng.standard_normal()
        return min(1.0, max(0.0, value + error / 10))


def _value(request: ChatRequest, measures: Measures) -> float:
    """What is asked for, in [0, 1]."""
    if request.aspect() == "sc":
        return measures.sc / 10
    if request.aspect() == "pq":
        return measures.pq / 10
    if request.aspect() != "checklist":
        raise RequestFailed(400, f"metadata.aspect is {request.aspect()!r}; expected sc, pq or checklist")
    text = request.text().lower()
    asked = [measured for question, measured in QUESTIONS.items() if question in text]
    if len(asked) != 1:
        raise RequestFailed(
            400,
            f"the text holds {len(asked)} of the questions that this judge answers; ask one of: "
            f"{', '.join(QUESTIONS)}",
        )
    return asked[0](measures)


def _reason(measures: Measures) -> str:
    """What the measures say in words, without digits."""
    place = "the right place was changed" if measures.place >= 0.5 else "the right place was hardly changed"
    done = "as it was asked for" if measures.accuracy >= 0.5 else "but not into what was asked for"
    kept = "nothing else was" if measures.preservation >= 0.5 else "other things were changed too"
    clean = "looks clean" if measures.quality >= 0.5 else "is noisy, flat or oddly coloured"
    return f"{place}, {done}; {kept}; the image {clean}"


class Traffic:
    """Counts requests, and draws how long each waits and whether it fails.

    The draws of a request depend on its content and on how often that came before: the order in which clients
    ask changes nothing, and trying again helps.
    """

    def __init__(self, config: ScenesJudgeConfig) -> None:
        self.config = config
        self.faults = dict(config.faults)
        self.outcomes: Counter[str] = Counter()
        self.in_flight = 0
        self.max_in_flight = 0
        self._attempts: LRUCache[str, int] = LRUCache(maxsize=100_000)

    @contextmanager
    def flight(self) -> Iterator[None]:
        """While it lasts, a request is being answered."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def draw(self, body: bytes) -> tuple[float, str | None]:
        """Seconds to wait, and the fault that the request meets, if any."""
        content = hashlib.blake2b(body, digest_size=16).hexdigest()
        attempt = self._attempts[content] = self._attempts.get(content, 0) + 1
        rng = np.random.default_rng(derive(self.config.seed, "traffic", content, attempt))
        jitter, drawn = rng.uniform(-1, 1), rng.random()
        wait = max(0.0, self.config.latency_s + jitter * self.config.latency_jitter_s)
        for kind, share in sorted(self.faults.items()):
            if drawn < share:
                return wait, kind
            drawn -= share
        return wait, None


class TruncatedResponse(Response):
    """Half of the body, then the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        half = bytes(self.body[: len(self.body) // 2])
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})


def create_app(config: ScenesJudgeConfig) -> FastAPI:
    """The server's routes."""
    judge, traffic = Judge(config), Traffic(config)
    app = FastAPI(title="gvcot scenes judge")

    @app.post("/v1/chat/completions")
    async def chat(http: Request, request: ChatRequest) -> Response:
        if request.model != config.model:
            raise RequestFailed(
                404,
                f"The model `{request.model}` does not exist; this server has `{config.model}`.",
                code="model_not_found",
            )
        with traffic.flight():
            wait, fault = traffic.draw(await http.body())
            await asyncio.sleep(wait)
            if fault is None:
                response = _completion(request, await run_in_threadpool(judge.answer, request))
            else:
                response = await _fail(fault, http, request, config)
        traffic.outcomes[fault or ("neutral" if request.sample_id() == PROBE else "ok")] += 1
        return response

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": config.model, "object": "model", "created": 0, "owned_by": "gvcot"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/admin/faults")
    async def set_faults(faults: dict[str, float]) -> dict[str, float]:
        check_faults(faults)
        traffic.faults = faults
        return faults

    @app.get("/admin/stats")
    async def stats() -> dict[str, Any]:
        return {
            "outcomes": dict(traffic.outcomes),
            "in_flight": traffic.in_flight,
            "max_in_flight": traffic.max_in_flight,
        }

    @app.exception_handler(RequestFailed)
    async def failed(http: Request, error: Exception) -> Response:
        assert isinstance(error, RequestFailed)
        traffic.outcomes["bad_request"] += 1
        return _error(error.status, error.message, code=error.code)

    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ConfigError)
    async def invalid(http: Request, error: Exception) -> Response:
        traffic.outcomes["bad_request"] += 1
        if isinstance(error, RequestValidationError):
            wrong = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            return _error(400, "; ".join(wrong))
        return _error(400, str(error))

    return app


async def _fail(kind: str, http: Request, request: ChatRequest, config: ScenesJudgeConfig) -> Response:
    """The response to a request that meets a fault."""
    if kind == "timeout":
        await _hang(http, config.hang_s)
        return _error(504, "The judge took too long.", code="timeout")
    if kind == "429":
        response = _error(429, "Rate limit reached; try again later.", code="rate_limit_exceeded")
        response.headers["Retry-After"] = str(config.retry_after_s)
        return response
    if kind == "500":
        return _error(500, "The server had an error while processing your request.")
    if kind == "html":
        return HTMLResponse("<html><body><h1>Welcome to the gateway</h1></body></html>")
    if kind == "truncated":
        whole = _completion(request, Answer(GIBBERISH))
        return TruncatedResponse(whole.body, media_type="application/json")
    if kind == "nan":
        return _completion(request, say(request, math.nan, "", config))
    answers = {
        "garbage": Answer(GIBBERISH, [("the", math.log(0.9)), (" a", math.log(0.1))]),
        "wrong_schema": Answer(WRONG_SCHEMA),
        "refusal": Answer(None, refusal=REFUSAL),
    }
    answer = answers[kind]
    return _completion(request, answer if request.logprobs else answer._replace(logprobs=None))


async def _hang(http: Request, seconds: float) -> None:
    """Wait until the client leaves, or for so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not await http.is_disconnected():
        await asyncio.sleep(0.05)


def _completion(request: ChatRequest, answer: Answer) -> Response:
    message = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
    logprobs = None
    if answer.logprobs is not None:
        tokens = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in answer.logprobs]
        chosen = next((token for token in tokens if token["token"] == answer.content), tokens[0])
        logprobs = {"content": [{**chosen, "top_logprobs": tokens}], "refusal": None}
    prompt = IMAGE_TOKENS * len(request.image_urls()) + len(request.text().split())
    written = len((answer.content or answer.refusal or "").split())
    usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
    body = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request.model,
        "choices": [{"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "stop"}],
        "usage": usage,
    }
    # Like vLLM's, and unlike Starlette's, this JSON may hold NaN.
    return Response(json.dumps(body), media_type="application/json")


def _error(status: int, message: str, *, code: str | None = None) -> Response:
    kinds = {429: "rate_limit_error", 500: "server_error", 504: "server_error"}
    kind = kinds.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": None, "code": code}
    return Response(json.dumps({"error": error}), status, media_type="application/json")


def serve(config: ScenesJudgeConfig, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serves until the process is interrupted."""
    _server(config, host, port).run()


@contextmanager
def running(config: ScenesJudgeConfig) -> Iterator[str]:
    """A judge in a process of its own on a free port, which ends with the block or with this process.

    Yields:
        The base URL for OpenAI clients, http://127.0.0.1:<port>/v1.

    Raises:
        ResourceError: the server does not start.
    """
    # The child inherits the listening socket, so nobody else can take the port in between.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-m", "rewards.judge.scenes_server", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            text=True,
        )
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(to_dict(config)) + "\n")
        process.stdin.flush()
        _wait_for(url)
        yield url + "/v1"
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_for(url: str) -> None:
    try:
        httpx.get(url + "/health", timeout=60, trust_env=False).raise_for_status()
    except httpx.HTTPError as error:
        raise ResourceError(
            f"the scenes judge at {url} does not answer ({error}); its own message is above, on stderr"
        ) from error


def _server(config: ScenesJudgeConfig, host: str, port: int) -> uvicorn.Server:
    settings = uvicorn.Config(
        create_app(config),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    # A truncated answer is meant; uvicorn would report each as an error.
    logging.getLogger("uvicorn.error").addFilter(
        lambda r: "without completing response" not in r.getMessage()
    )
    return uvicorn.Server(settings)


def _child(descriptor: int) -> None:
    """Serves on an inherited socket until stdin closes; the configuration is stdin's first line."""
    config = decode(ScenesJudgeConfig, json.loads(sys.stdin.readline()))
    server = _server(config, "127.0.0.1", 0)

    def stop() -> None:
        sys.stdin.read()
        server.should_exit = True

    threading.Thread(target=stop, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    try:
        _child(int(sys.argv[1]))
    except GvcotError as error:
        sys.exit(str(error))
