"""A real HTTP server that speaks the OpenAI API, has opinions of its own, and fails on demand."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from PIL import Image

from rewards.base import RewardBatch
from rewards.judge import prompts
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.endpoint import PROBE_EDIT

SC, PQ = 0.4, 0.9
"""What the server thinks of everything unless a test tells it otherwise; 1 is the best."""


@dataclass
class Asked:
    """One chat request that reached the server."""

    endpoint: str
    body: dict[str, Any]

    @property
    def content(self) -> list[dict[str, Any]]:
        return self.body["messages"][1]["content"]

    @property
    def text(self) -> str:
        return self.content[-1]["text"]

    @property
    def images(self) -> list[np.ndarray]:
        urls = [part["image_url"]["url"] for part in self.content if part["type"] == "image_url"]
        return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))) for url in urls]

    @property
    def is_probe(self) -> bool:
        return prompts.quoted(PROBE_EDIT.instruction) in self.text

    @property
    def aspect(self) -> str:
        texts = {"sc": prompts.SC, "pq": prompts.PQ}
        return next((aspect for aspect, text in texts.items() if text in self.text), "checklist")


def usual_opinion(asked: Asked) -> float:
    return {"sc": SC, "pq": PQ, "checklist": 1.0}[asked.aspect]


@dataclass
class JudgeServer:
    """What the server does, which tests set, and what it has seen. Endpoints are told apart by their path."""

    port: int
    opinion: Callable[[Asked], float] = usual_opinion
    """Score as a share of the best."""

    gives_logprobs: bool = True
    knows_grammars: bool = True
    key: str | None = None
    """API key that is asked for."""

    models: tuple[str, ...] = ("vlm",)

    faults: dict[str, deque[str]] = field(default_factory=dict)
    """Endpoint, or "probe" for test questions at start -> what its next answers are instead; see `fail`."""

    retry_after: str = "0"

    opens_at: float = 0.0
    """Until then "closed" answers 429."""

    delay_s: float = 0.0
    asked: list[Asked] = field(default_factory=list)
    """Without test questions."""

    in_flight: int = 0
    max_in_flight: int = 0

    def url(self, endpoint: str = "first") -> str:
        return f"http://127.0.0.1:{self.port}/{endpoint}/v1"

    def config(self, *names: str, **options: Any) -> JudgeConfig:
        """A config that retries at once; `names`: endpoints."""
        endpoints = tuple(
            EndpointConfig(base_url=self.url(name), model="vlm") for name in names or ("first",)
        )
        return JudgeConfig(**{"endpoints": endpoints, "backoff_s": 1e-3, "deadline_s": 20.0} | options)

    def fail(self, *faults: str, endpoint: str = "first") -> None:
        """fail("500", "...") fails for ever, fail("500", "500") twice."""
        self.faults[endpoint] = deque(faults)

    def next_fault(self, asked: Asked) -> str | None:
        if not asked.is_probe:
            self.asked.append(asked)
        faults = self.faults.get("probe" if asked.is_probe else asked.endpoint, deque())
        if not faults:
            return None
        if len(faults) > 1 and faults[1] == "...":
            return faults[0]
        return faults.popleft()


def create_app(state: Callable[[], JudgeServer]) -> FastAPI:
    app = FastAPI()

    def allowed(request: Request) -> bool:
        key = state().key
        return key is None or request.headers.get("authorization") == f"Bearer {key}"

    @app.get("/{endpoint}/v1/models")
    async def models(endpoint: str, request: Request) -> Response:
        if not allowed(request):
            return error(401, "no such key")
        return JSONResponse({"object": "list", "data": [{"id": model} for model in state().models]})

    @app.post("/{endpoint}/v1/chat/completions")
    async def chat(endpoint: str, request: Request) -> Response:
        server = state()
        if not allowed(request):
            return error(401, "no such key")
        asked = Asked(endpoint, await request.json())
        server.in_flight += 1
        server.max_in_flight = max(server.max_in_flight, server.in_flight)
        try:
            await asyncio.sleep(server.delay_s)
            fault = server.next_fault(asked)
            return (
                await answer(server, asked) if fault is None else await broken(server, asked, fault, request)
            )
        finally:
            server.in_flight -= 1

    return app


async def answer(server: JudgeServer, asked: Asked) -> Response:
    """What a healthy server says."""
    grammar = asked.body.get("structured_outputs")
    if grammar is not None and not server.knows_grammars:
        return error(400, "Unrecognized request argument supplied: structured_outputs")
    opinion = SC if asked.is_probe else server.opinion(asked)
    if asked.body.get("response_format"):
        name = "answer" if asked.aspect == "checklist" else "score"
        value = ("yes" if opinion >= 0.5 else "no") if name == "answer" else round(10 * opinion)
        return completion(json.dumps({"reason": "because", name: value}))
    if asked.aspect == "checklist":
        return tokens(server, {"yes": opinion, "no": 1 - opinion})
    lower = min(int(9 * opinion), 8)
    upper = 9 * opinion - lower
    return tokens(server, {str(lower): 1 - upper, str(lower + 1): upper})


async def broken(server: JudgeServer, asked: Asked, fault: str, request: Request) -> Response:
    if fault == "closed":
        server.opens_at = server.opens_at or time.monotonic() + float(server.retry_after)
        if time.monotonic() >= server.opens_at:
            return await answer(server, asked)
        fault = "429"
    if fault.isdigit():
        return error(int(fault), f"fault {fault}", {"retry-after": server.retry_after})
    if fault == "hang":
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
    if fault == "cut":
        whole = completion("7").body
        return StreamingResponse(
            iter([bytes(whole)[:40]]),
            headers={"content-length": str(len(whole))},
            media_type="application/json",
        )
    return {
        "html": HTMLResponse("<html>bad gateway</html>"),
        "garbage": completion("What a lovely picture!", logprobs={"What": 0.9, "7": 0.1}),
        "no_choices": JSONResponse({"choices": None}),
        "nan": completion('{"reason": "", "score": NaN}', logprobs={"7": math.nan}),
        "off_scale": completion('{"reason": "", "score": 11}', logprobs={"7": 1.5, "8": 1.5}),
        "refusal": completion(None, refusal="I'm sorry, I can't help with that."),
        "length": completion('{"reason": "it goes on and', finish="length"),
        "hang": Response(),
    }[fault]


def tokens(server: JudgeServer, probabilities: dict[str, float]) -> Response:
    likely = max(probabilities, key=lambda token: probabilities[token])
    return completion(likely, logprobs=probabilities if server.gives_logprobs else None)


def completion(
    content: str | None,
    *,
    logprobs: dict[str, float] | None = None,
    refusal: str | None = None,
    finish: str = "stop",
) -> Response:
    """A chat completion; `logprobs`: probabilities of the first token's alternatives."""
    top = [
        {"token": token, "logprob": math.log(p) if p > 0 or math.isnan(p) else -9999.0}
        for token, p in (logprobs or {}).items()
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, "refusal": refusal},
        "finish_reason": finish,
        "logprobs": {"content": [{**top[0], "top_logprobs": top}]} if logprobs else None,
    }
    # not JSONResponse, which writes no NaN
    body = json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})
    return Response(body, media_type="application/json")


def error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"error": {"message": message}}, status, headers)


@dataclass
class Holder:
    """The state of the test that runs."""

    server: JudgeServer


@pytest.fixture(scope="session")
def running_server() -> Iterator[Holder]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        holder = Holder(JudgeServer(port=listener.getsockname()[1]))
        config = uvicorn.Config(
            create_app(lambda: holder.server),
            log_level="critical",
            lifespan="off",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        yield holder
        server.should_exit = True
        thread.join()


@pytest.fixture
def server(running_server: Holder) -> JudgeServer:
    """The server, healthy and with nothing asked yet."""
    running_server.server = JudgeServer(port=running_server.server.port)
    return running_server.server


@pytest.fixture
def grey_batch(
    make_batch: Callable[..., RewardBatch], square: Callable[..., np.ndarray]
) -> Callable[..., RewardBatch]:
    """grey_batch(0.1, 0.5): one chain per edit, each a picture of one brightness from 0 to 1."""

    def make(*brightness: float) -> RewardBatch:
        edits_B3HW = torch.tensor(brightness)[:, None, None, None].expand(-1, 3, 16, 16) * 2 - 1
        return make_batch([square(4, 4, 8, 8)] * len(brightness), images={"x_edit": edits_B3HW})

    return make
