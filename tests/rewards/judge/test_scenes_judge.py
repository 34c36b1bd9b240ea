"""The scenes judge: what it measures, asked in process; how it answers and fails, asked over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

import gvcot
from gvcot.config import decode
from gvcot.data import scenes
from gvcot.data.images import to_tensor, to_uint8
from gvcot.data.scenes.world import COLORS
from gvcot.errors import ConfigError
from gvcot.types import EditSample
from rewards.base import RewardBatch
from rewards.fidelity import EditAccuracy
from rewards.judge.chat import ChatRequest
from rewards.judge.client import Judge as AskingJudge
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.measure import digit_probabilities, measure, reference
from rewards.judge.prompts import Edit, case_of
from rewards.judge.scenes_server import QUESTIONS, Judge, Traffic, running
from rewards.judge.serve_config import FAULT_KINDS, ScenesJudgeConfig

MODEL = "scenes-judge"
DIGITS = {"logprobs": True, "top_logprobs": 20, "extra_body": {"structured_outputs": {"regex": "[0-9]"}}}
YES_NO = {"logprobs": True, "top_logprobs": 20, "extra_body": {"structured_outputs": {"regex": "(yes|no)"}}}
SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "score": {"type": "integer", "enum": list(range(11))},
        "fine": {"type": "boolean"},
        "answer": {"type": "string", "enum": ["yes", "no"]},
    },
}
JSON = {"response_format": {"type": "json_schema", "json_schema": {"name": "v", "schema": SCHEMA}}}

# ---- asking


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with running(ScenesJudgeConfig(retry_after_s=7)) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    """A client of a healthy server that tries nothing twice."""
    admin(base_url, {})
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=30) as client:
        yield client
    admin(base_url, {})


def admin(base_url: str, faults: dict[str, float]) -> httpx.Response:
    return httpx.post(base_url.removesuffix("/v1") + "/admin/faults", json=faults)


def stats(base_url: str) -> dict:
    return httpx.get(base_url.removesuffix("/v1") + "/admin/stats").json()


def data_url(image_HW3: np.ndarray, factor: int = 1) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3.repeat(factor, 0).repeat(factor, 1)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def question(
    sample: EditSample, edit: np.ndarray, aspect: str = "sc", *, text: str = "Rate the edit.", factor: int = 1
) -> dict:
    images = [sample.source_HW3, edit]
    parts = [{"type": "image_url", "image_url": {"url": data_url(i, factor)}} for i in images]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        "metadata": {"sample_id": sample.sample_id, "aspect": aspect, "phase": "x_edit"},
    }


def plain(text: str = "Anybody there?") -> dict:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def expected(completion) -> float:
    """The expectation of the answer's digit on the scale 0 to 10."""
    top = completion.choices[0].logprobs.content[0].top_logprobs
    return sum(math.exp(t.logprob) * int(t.token) for t in top) * 10 / 9


def score(judge: Judge, sample: EditSample, edit: np.ndarray, aspect: str = "sc") -> float:
    """The same without a server, to two decimals."""
    schema = {"properties": {"score": {"type": "number"}}}
    form = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    request = ChatRequest.model_validate(question(sample, edit, aspect) | form)
    return json.loads(judge.answer(request).content or "")["score"]


# ---- edits


@pytest.fixture(scope="module")
def samples() -> list[EditSample]:
    """Two of each task."""
    worlds = [scenes.WorldConfig(tasks=(task,)) for task in scenes.TASKS]
    return [scenes.generate(0, i, world=world) for world in worlds for i in range(2)]


@pytest.fixture(scope="module")
def sample() -> EditSample:
    """A removal of one of several things."""
    return scenes.generate(0, next(i for i in range(100) if scenes.generate(0, i).task == "removal"))


def recolor(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The masked pixels in a clearly different colour of the world."""
    red, blue = np.uint8(COLORS["red"]), np.uint8(COLORS["blue"])
    is_red = np.abs(image[mask].mean(0) - red).sum() < 150
    return np.where(mask[..., None], blue if is_red else red, image)


def bystanders(sample: EditSample) -> list[np.ndarray]:
    """Silhouettes that the edit does not touch."""
    masks = [thing.mask_HW for thing in sample.things]
    return [mask for mask in masks if not (mask & sample.change_mask_HW).any()]


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 255 * sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_the_target_scores_ten_and_the_source_nothing(samples):
    for sample in samples:
        ref = reference(sample)
        target, source = measure(sample.target_HW3, ref), measure(sample.source_HW3, ref)
        assert (target.sc, target.pq) == (10, 10), sample.sample_id
        assert source.sc == 0, sample.sample_id
        assert source.pq == 10, sample.sample_id


def test_the_codec_costs_little(samples):
    """Images as the shipped model draws them."""
    from gvcot.model.pretrained import load_pretrained

    codec = load_pretrained(Path(gvcot.__file__).parent / "assets/warm_start").codec
    with torch.no_grad():
        drawn = [
            to_uint8(codec.decode(codec.encode(to_tensor(images))))
            for images in ([s.target_HW3 for s in samples], [s.source_HW3 for s in samples])
        ]
    refs = [reference(sample) for sample in samples]
    target, source = ([measure(e, r) for e, r in zip(edits, refs, strict=True)] for edits in drawn)
    assert np.mean([m.sc for m in target]) > 9
    assert np.mean([m.pq for m in target]) > 9.5
    assert np.mean([m.sc for m in source]) < 0.5
    assert np.mean([m.pq for m in source]) > 9.5


def test_an_edit_of_another_thing_scores_nothing(samples):
    tried = [(s, mask) for s in samples for mask in bystanders(s)]
    assert len(tried) > 50
    for sample, mask in tried:
        assert measure(recolor(sample.source_HW3, mask), reference(sample)).sc < 0.02, sample.sample_id


def test_harm_to_a_bystander_costs_and_more_harm_costs_more(samples):
    tried = [(s, bystanders(s)) for s in samples if len(bystanders(s)) > 1]
    assert len(tried) > 10
    for sample, masks in tried:
        one = recolor(sample.target_HW3, masks[0])
        two = recolor(one, masks[1])
        harmless, some, more = (measure(e, reference(sample)).sc for e in (sample.target_HW3, one, two))
        assert harmless > some + 1, sample.sample_id
        assert some > more, sample.sample_id


def test_the_right_place_earns_a_little_whatever_becomes_of_it(sample):
    """A fifth at most: the thing that was to go is there, in another colour."""
    wrong = recolor(sample.source_HW3, sample.mask_HW)
    assert 0 < measure(wrong, reference(sample)).sc <= 2


def test_formulas_by_hand():
    """A grey picture whose upper half is to become white. The edit goes half the way, and makes the lower
    half lighter by a fifth of the range. Differences count from .06 on; blur matters at the border only."""
    grey = np.full((320, 320, 3), 55, np.uint8)
    upper = np.arange(320)[:, None] < np.full(320, 160)
    sample = replace(
        scenes.generate(0, 0), source_HW3=grey, change_mask_HW=upper,
        target_HW3=np.where(upper[..., None], np.uint8(255), grey),
    )  # fmt: skip
    edit = np.where(upper[..., None], np.uint8(155), np.full_like(grey, 106))
    got = measure(edit, reference(sample))
    needed, left, harm = 200 / 255 - 0.06, 100 / 255 - 0.06, 0.2 - 0.06
    assert got.accuracy == pytest.approx((needed - left) / (needed + left), abs=0.01)
    assert got.place == pytest.approx(left / (needed + harm), abs=0.01)
    assert got.preservation == pytest.approx(math.exp(-harm / 0.1), abs=0.01)
    assert got.sc == 10 * got.preservation * (0.2 * got.place + 0.8 * got.accuracy)


def test_scores_rank_edits_as_edit_accuracy_does(samples):
    """Edits on the way from source to target, and a little noise, to which edit_accuracy objects more."""
    rng = np.random.default_rng(0)
    judged, rewarded = [], []
    for sample in samples:
        source, target = sample.source_HW3.astype(float), sample.target_HW3.astype(float)
        edits = [
            np.clip(source + way * (target - source) + rng.normal(0, sigma, source.shape), 0, 255)
            for way, sigma in zip(rng.uniform(0, 1, 6), rng.uniform(0, 5, 6), strict=True)
        ]
        edits = [edit.round().astype(np.uint8) for edit in edits]
        judged += [measure(edit, reference(sample)).sc for edit in edits]
        batch = RewardBatch(
            samples=[sample] * 6,
            images={"x_edit": to_tensor(edits)},
            source_rt_B3HW=to_tensor([sample.source_HW3] * 6),
            target_rt_B3HW=to_tensor([sample.target_HW3] * 6),
            group_B=torch.zeros(6, dtype=torch.long),
        )
        rewarded += EditAccuracy().score(batch).raw_B.tolist()
    assert spearmanr(judged, rewarded).statistic > 0.85


def test_quality_falls_with_noise_and_blur_and_knows_mush(sample):
    ref, target = reference(sample), sample.target_HW3
    noise = [measure(noisy(target, sigma), ref).pq for sigma in (0, 0.03, 0.06, 0.1, 0.2)]
    assert noise[0] == 10
    assert noise == sorted(noise, reverse=True)
    assert noise[1] > 8
    assert noise[-1] < 1
    blur = [measure(gaussian_filter(target, (s, s, 0)), ref).pq for s in (0, 1, 2, 4)]
    assert blur == sorted(blur, reverse=True)
    assert blur[2] < 5
    grey, mush = (
        np.full_like(target, 128),
        np.broadcast_to(target.mean((0, 1)).astype(np.uint8), target.shape),
    )
    confetti = np.random.default_rng(0).integers(0, 256, target.shape).astype(np.uint8)
    garish = np.full_like(target, 0) + np.uint8([255, 0, 255])
    for bad in (grey, mush, confetti, garish):
        assert measure(bad, ref).pq < 0.5


def test_quality_does_not_ask_what_was_wanted(samples):
    for sample in samples:
        for mask in bystanders(sample)[:1]:
            assert measure(recolor(sample.source_HW3, mask), reference(sample)).pq > 8


# ---- the forms of answers


@given(score=st.floats(0, 10), spread=st.floats(0, 1))
def test_the_expected_digit_is_the_score(score, spread):
    p_D = digit_probabilities(score, spread)
    assert (p_D >= 0).all()
    assert p_D.sum() == pytest.approx(1, abs=1e-9)
    assert p_D @ np.arange(10) == pytest.approx(0.9 * score, abs=1e-9)


def test_digits_by_hand():
    """A score of 5 is 4.5 on the digits: half 4, half 5; spread out, Binomial(9, 1/2)."""
    assert digit_probabilities(5, 0).tolist() == pytest.approx([0, 0, 0, 0, 0.5, 0.5, 0, 0, 0, 0])
    assert digit_probabilities(5, 1)[[0, 4]].tolist() == pytest.approx([1 / 512, 126 / 512])


@pytest.mark.parametrize("factor", [1, 7])
def test_digits_over_http(client, sample, factor):
    half = np.where(np.arange(64)[:, None, None] % 2, sample.source_HW3, sample.target_HW3)
    for edit in (sample.target_HW3, sample.source_HW3, half):
        for aspect in ("sc", "pq"):
            wanted = getattr(measure(edit, reference(sample)), aspect)
            got = client.chat.completions.create(**question(sample, edit, aspect, factor=factor), **DIGITS)
            assert expected(got) == pytest.approx(wanted, abs=1e-6)
            assert got.choices[0].message.content in set("0123456789")
    assert got.usage.prompt_tokens > 512
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens


def test_json_and_text(client, sample):
    for edit, wanted in ((sample.target_HW3, 10), (sample.source_HW3, 0)):
        asked = question(sample, edit)
        got = json.loads(client.chat.completions.create(**asked, **JSON).choices[0].message.content)
        assert got["score"] == wanted
        assert got["fine"] is (wanted == 10)
        assert got["answer"] == ("yes" if wanted == 10 else "no")
        assert ("the right place was changed" in got["reason"]) is (wanted == 10)
        text = client.chat.completions.create(**asked).choices[0].message.content
        assert text.startswith(f"Score: {wanted:.1f}")


def test_checklist(client, sample):
    """The target gets yes throughout; a spoilt target no for the rest; the source no for all but the rest."""
    spoilt = np.where(sample.change_mask_HW[..., None], sample.target_HW3, 255 - sample.source_HW3)
    place, rest, done, clean = QUESTIONS
    yes = {
        "target": {place, rest, done, clean},
        "source": {rest, clean},
        "spoilt": {done},
    }
    for name, edit in (("target", sample.target_HW3), ("source", sample.source_HW3), ("spoilt", spoilt)):
        for text in QUESTIONS:
            asked = question(sample, edit, "checklist", text=f"Look closely. {text.capitalize()}")
            got = client.chat.completions.create(**asked, **YES_NO).choices[0]
            assert got.message.content == ("yes" if text in yes[name] else "no"), (name, text)
            assert (
                client.chat.completions.create(**asked)
                .choices[0]
                .message.content.startswith(got.message.content)
            )
            mass = sum(math.exp(t.logprob) for t in got.logprobs.content[0].top_logprobs)
            assert mass == pytest.approx(1)
    with pytest.raises(openai.BadRequestError, match="ask one of: was the right thing changed"):
        client.chat.completions.create(**question(sample, spoilt, "checklist", text="Is it art?"), **YES_NO)


def test_requests_without_a_sample_get_a_neutral_answer(client):
    image = {"type": "image_url", "image_url": {"url": data_url(np.zeros((8, 8, 3), np.uint8))}}
    asked = {"model": MODEL, "messages": [{"role": "user", "content": [image]}]}
    assert expected(client.chat.completions.create(**asked, **DIGITS)) == pytest.approx(5)
    assert (
        json.loads(client.chat.completions.create(**asked, **JSON).choices[0].message.content)["score"] == 5
    )


def test_models_health_and_unknown_models(client, base_url):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert httpx.get(base_url.removesuffix("/v1") + "/health").status_code == 200
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(**plain() | {"model": "gpt-0"})
    assert caught.value.code == "model_not_found"


def test_the_projects_own_client_is_understood(base_url, sample):
    """Image order, grammar, schema, checklist and metadata as the reward sends them."""
    admin(base_url, {})

    async def verdicts(readout):
        config = JudgeConfig(
            endpoints=(EndpointConfig(base_url=base_url, model=MODEL, readout=readout, send_metadata=True),),
            mask_context=True,
            image_size=128,
            checklist={sample.task: ("Was the right thing changed?", "Is everything else unchanged?")},
        )
        judge = AskingJudge(config)
        await judge.start()
        cases = [
            case_of(
                Edit(
                    sample_id=sample.sample_id, task=sample.task, instruction=sample.instruction,
                    before_HW3=sample.source_HW3, after_HW3=after, mask_HW=sample.mask_HW,
                ),
                config,
            )
            for after in (sample.target_HW3, sample.source_HW3)
        ]  # fmt: skip
        found = [await judge.judge(case) for case in cases]
        await judge.close()
        return found

    for readout in ("digits", "json"):
        target, source = asyncio.run(verdicts(readout))
        assert target.scores == pytest.approx({"sc": 10, "pq": 10, "checklist": 1})
        assert source.scores == pytest.approx({"sc": 0, "pq": 10, "checklist": 0.5})


# ---- what it refuses


@pytest.mark.parametrize(
    ("world", "size", "message"),
    [
        (scenes.WorldConfig(level="easy"), None, "is of another world.*data.world"),
        (scenes.WorldConfig(entities=(4, 5)), None, "is of another world.*data.world"),
        (scenes.WorldConfig(), 80, "80x80 px, expected 64x64.*size of the run's images"),
    ],
)
def test_samples_of_another_world_or_size_are_refused(client, world, size, message):
    other = scenes.generate(0, 7, world=world, size=size)
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**question(other, other.target_HW3), **DIGITS)


def test_another_image_before_is_refused_and_a_drawn_one_is_not(client, sample):
    other = replace(sample, source_HW3=scenes.generate(0, 8).source_HW3)
    with pytest.raises(openai.BadRequestError, match="not the source of scenes/train/.*another world, size"):
        client.chat.completions.create(**question(other, sample.target_HW3), **DIGITS)
    drawn = replace(sample, source_HW3=noisy(sample.source_HW3, 0.03))
    got = client.chat.completions.create(**question(drawn, sample.target_HW3), **DIGITS)
    assert expected(got) == pytest.approx(10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"sample_id": "coco/7", "aspect": "sc"}}, "expected scenes/<split>/<seed>/<index>"),
        ({"metadata": {"sample_id": "scenes/bench/0/9999", "aspect": "sc"}}, "0 <= index < 590"),
        ({"metadata": {"sample_id": "scenes/train/0/7", "aspect": "beauty"}}, "expected sc, pq or checklist"),
        ({"metadata": {"sample_id": "scenes/train/0/7", "aspect": "sc", "phase": "x_cot"}}, "x_edit only"),
        ({"messages": [{"role": "user", "content": "Rate it."}]}, "expected at least two: before and after"),
        ({"top_logprobs": 30}, "top_logprobs"),
        ({"extra_body": {"structured_outputs": {"regex": "[a-z]+"}}}, "this judge knows regex"),
        ({"response_format": {"type": "json_schema"}}, "no logprobs of JSON"),
    ],
)
def test_what_it_cannot_answer_is_refused_with_a_reason(client, change, message):
    sample = scenes.generate(0, 7)
    request = question(sample, sample.target_HW3) | DIGITS | {"extra_body": {}} | change
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**request)


def test_broken_images_are_refused(client, sample):
    for url, message in (
        ("http://example.com/a.png", "expected a data URL"),
        ("data:image/png;base64,AAAA", "cannot read an image"),
    ):
        request = question(sample, sample.target_HW3)
        request["messages"][0]["content"][1]["image_url"]["url"] = url
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(**request)


# ---- how it errs


def test_bias_and_noise(sample):
    half = np.where(np.arange(64)[:, None, None] % 2, sample.source_HW3, sample.target_HW3)
    exact = score(Judge(ScenesJudgeConfig()), sample, half)
    assert score(Judge(ScenesJudgeConfig(bias=1.5)), sample, half) == pytest.approx(exact + 1.5, abs=0.011)
    assert score(Judge(ScenesJudgeConfig(bias=5)), sample, sample.target_HW3) == 10
    assert score(Judge(ScenesJudgeConfig(bias=-5)), sample, sample.source_HW3) == 0
    edits = [half.copy() for _ in range(60)]
    for i, edit in enumerate(edits):
        edit[0, 0, 0] = i  # another image that looks the same

    def errors(seed: int) -> np.ndarray:
        judge = Judge(ScenesJudgeConfig(noise=0.5, seed=seed))
        return np.array([score(judge, sample, edit) for edit in edits]) - exact

    first = errors(0)
    assert (first == errors(0)).all()
    assert (first != errors(1)).mean() > 0.9
    assert abs(first.mean()) < 3.5 * 0.5 / math.sqrt(60)
    assert 0.33 < first.std() < 0.67  # 3.5 standard errors of a standard deviation


def test_blind_spots(sample):
    sees, blind, vivid = (Judge(ScenesJudgeConfig(blind_spots=s)) for s in ((), ("outside",), ("vivid",)))
    spoilt = sample.target_HW3
    for mask in bystanders(sample):
        spoilt = recolor(spoilt, mask)
    assert score(sees, sample, spoilt) < 5
    assert score(blind, sample, spoilt) > 9.9
    confetti = (255 * np.random.default_rng(0).integers(0, 2, spoilt.shape)).astype(np.uint8)
    assert score(sees, sample, confetti, "pq") < 0.5
    assert score(vivid, sample, confetti, "pq") == 10
    assert score(vivid, sample, sample.target_HW3, "pq") == 10


# ---- how it fails


def seen(ask: Callable) -> str:
    """What a client sees of a fault."""
    try:
        completion = ask()
    except openai.APITimeoutError:
        return "timeout"
    except openai.APIConnectionError as error:
        return f"connection: {type(error.__cause__).__name__}"
    except openai.APIStatusError as error:
        return f"{error.status_code} {error.response.headers.get('retry-after')}"
    if isinstance(completion, str):
        return "a page" if "<html>" in completion else completion
    choice = completion.choices[0]
    if choice.message.refusal:
        return f"refusal, content {choice.message.content}"
    return choice.message.content


FAULTS = {
    "timeout": ("timeout", "timeout"),
    "429": ("429 7", "429 7"),
    "500": ("500 None", "500 None"),
    "truncated": ("connection: RemoteProtocolError",) * 2,
    "garbage": ("the the image image of of which ;; the",) * 2,
    "nan": ("nan", '{"reason": "", "score": NaN, "fine": false, "answer": "no"}'),
    "wrong_schema": ('{"rating": "high"}',) * 2,
    "refusal": ("refusal, content None",) * 2,
    "html": ("a page", "a page"),
}
"""Kind -> what is seen of an answer in digits and of one in JSON."""


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_each_fault_as_a_client_sees_it(client, base_url, sample, kind):
    before = stats(base_url)["outcomes"].get(kind, 0)
    assert admin(base_url, {kind: 1}).json() == {kind: 1}
    asking = client.with_options(timeout=0.5) if kind == "timeout" else client
    for form, wanted in zip((DIGITS, JSON), FAULTS[kind], strict=True):
        request = question(sample, sample.target_HW3) | form
        assert seen(lambda request=request: asking.chat.completions.create(**request)) == wanted
    poll(lambda: stats(base_url)["outcomes"].get(kind, 0) == before + 2)


def test_logprobs_of_faulty_digits(client, base_url, sample):
    request = question(sample, sample.target_HW3) | DIGITS
    admin(base_url, {"nan": 1})
    top = client.chat.completions.create(**request).choices[0].logprobs.content[0].top_logprobs
    assert [t.token for t in top] == list("0123456789")
    assert all(math.isnan(t.logprob) for t in top)
    admin(base_url, {"garbage": 1})
    top = client.chat.completions.create(**request).choices[0].logprobs.content[0].top_logprobs
    assert not any(t.token.isdigit() for t in top)


def test_recovery_once_the_judge_is_healthy(client, base_url, sample):
    request = question(sample, sample.target_HW3) | DIGITS
    admin(base_url, {"500": 1})
    for _ in range(3):
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(**request)
    admin(base_url, {})
    assert expected(client.chat.completions.create(**request)) == pytest.approx(10)


def test_faults_come_at_their_rates(client, base_url):
    """Four standard errors of 100 requests, as the client sees them and as the server counts them."""
    counted = Counter(stats(base_url)["outcomes"])
    admin(base_url, {"500": 0.3, "refusal": 0.2})
    got = Counter(seen(lambda i=i: client.chat.completions.create(**plain(f"{i}"))) for i in range(100))
    assert 12 <= got["500 None"] <= 48
    assert 4 <= got["refusal, content None"] <= 36
    new = Counter(stats(base_url)["outcomes"]) - counted
    assert new == {
        "500": got["500 None"],
        "refusal": got["refusal, content None"],
        "neutral": 100 - got["500 None"] - got["refusal, content None"],
    }


def test_draws_depend_on_seed_content_and_attempt_only():
    config = ScenesJudgeConfig(faults={"500": 0.5}, latency_s=2.0, latency_jitter_s=0.5)
    bodies = [str(i).encode() for i in range(300)]
    first, second = Traffic(config), Traffic(config)
    forth = {body: first.draw(body) for body in bodies}
    back = {body: second.draw(body) for body in reversed(bodies)}
    assert forth == back
    again = {body: first.draw(body) for body in bodies}
    assert 0.3 < np.mean([again[body][1] != forth[body][1] for body in bodies]) < 0.7
    waits = [wait for wait, _ in forth.values()]
    assert 1.5 <= min(waits) < 1.6
    assert 2.4 < max(waits) <= 2.5


def test_requests_in_flight_are_counted_and_given_up_when_their_client_leaves(client, base_url):
    admin(base_url, {"timeout": 1})

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as asking:
            waiting = [asyncio.create_task(asking.chat.completions.create(**plain(f"{i}"))) for i in range(5)]
            while (await asyncio.to_thread(stats, base_url))["in_flight"] < 5:
                await asyncio.sleep(0.02)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(asyncio.wait_for(ask(), 30))
    assert stats(base_url)["max_in_flight"] >= 5
    poll(lambda: stats(base_url)["in_flight"] == 0)


def poll(condition: Callable[[], bool]) -> None:
    """Wait until it holds, half a minute at most."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.02)


# ---- configuration and process


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"faults": {"420": 0.1}}, "unknown fault '420'; did you mean '429'"),
        ({"faults": {"500": 0.7, "nan": 0.5}}, "sum to 1.2"),
        ({"faults": {"500": -0.1}}, "expected a share from 0 to 1"),
        ({"size": 64, "world": {"level": "hard"}}, "at least 80"),
        ({"noise": -1}, "noise is -1.0, expected a number >= 0"),
        ({"spread": 2.0}, "spread is 2.0"),
        ({"blind_spots": ["all"]}, "unknown value 'all'"),
    ],
)
def test_bad_configurations_are_refused(raw, message):
    with pytest.raises(ConfigError, match=message):
        decode(ScenesJudgeConfig, raw)


def test_bad_faults_are_refused_while_it_runs(client, base_url):
    response = admin(base_url, {"429": 0.8, "500": 0.8})
    assert response.status_code == 400
    assert "sum to 1.6" in response.json()["error"]["message"]
    client.chat.completions.create(**plain())


def test_it_starts_without_torch_and_ends_with_the_process_that_started_it():
    code = """
import os, sys
from rewards.judge.scenes_server import running
from rewards.judge.serve_config import ScenesJudgeConfig
with running(ScenesJudgeConfig()) as url:
    print(url, "torch" in sys.modules, flush=True)
    os._exit(1)  # no clean-up runs
"""
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=False, timeout=60).stdout
    url, has_torch = said.split()
    assert has_torch == "False"

    def gone() -> bool:
        try:
            httpx.get(url + "/models")
        except httpx.TransportError:
            return True
        return False

    poll(gone)
