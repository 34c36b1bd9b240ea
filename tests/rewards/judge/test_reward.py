"""The judge as a reward, against a real server that fails on demand."""

from __future__ import annotations

import asyncio
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gvcot.config import to_dict
from gvcot.errors import ConfigError, GvcotError, RewardError
from gvcot.types import RewardResult
from rewards import mix
from rewards.config import RewardConfig
from rewards.judge.endpoint import PROBE_EDIT, Endpoint
from rewards.judge.prompts import SC, case_of, question
from rewards.judge.readout import KINDS, Missing
from rewards.judge.reward import VLMJudge
from rewards.mix import check_result
from rewards.registry import build_rewards


@pytest.fixture
def judge(server) -> Callable[..., VLMJudge]:
    """judge("first", "second", calls=2, ...): a reward that asks these endpoints; closed at the end."""
    made: list[VLMJudge] = []

    def make(*names: str, **options: Any) -> VLMJudge:
        made.append(VLMJudge(**to_dict(server.config(*names, **options))))
        return made[-1]

    yield make
    for reward in made:
        reward.close()


def brightness(asked: Any) -> float:
    """An opinion: the brighter the better."""
    return asked.images[-1].mean() / 255


def missing(result: RewardResult) -> set[str]:
    """Kinds of the failures that were reported."""
    return {kind for kind in KINDS if result.parts[f"missing_{kind}"].any()}


@pytest.mark.parametrize("readout", ["digits", "json"])
def test_the_score_is_the_root_of_both_scores(server, judge, grey_batch, readout: str):
    server.gives_logprobs = readout == "digits"
    result = judge().score(grey_batch(0.5, 0.6))
    check_result("judge", result, 2)
    assert result.valid_B.all()
    assert result.parts["sc"].tolist() == pytest.approx([4.0, 4.0])
    assert result.parts["pq"].tolist() == pytest.approx([9.0, 9.0])
    assert result.raw_B.tolist() == pytest.approx([0.6, 0.6])  # sqrt(4 * 9) / 10
    assert missing(result) == set()


def test_each_chain_gets_the_score_of_its_own_image(server, judge, grey_batch):
    server.opinion = brightness
    levels = torch.linspace(0, 1, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))].tolist()
    result = judge(max_concurrency=5).score(grey_batch(*levels))
    assert result.raw_B.tolist() == pytest.approx(levels, abs=1 / 255)


@pytest.mark.parametrize(("aspect", "score"), [("sc", 0.4), ("pq", 0.9)])
def test_one_aspect_alone_costs_one_request(server, judge, grey_batch, aspect: str, score: float):
    result = judge(aspect=aspect).score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx(score)
    assert [asked.aspect for asked in server.asked] == [aspect]


@pytest.mark.parametrize("gives_logprobs", [True, False])
def test_a_checklist_is_the_share_of_yes(server, judge, grey_batch, gives_logprobs: bool):
    server.gives_logprobs = gives_logprobs
    answers = {"Is it red?": 0.75, "Is it round?": 0.25}
    server.opinion = lambda asked: next(p for question, p in answers.items() if question in asked.text)
    options = {"aspect": "checklist", "checklist": {"color": tuple(answers)}}
    result = judge(**options).score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx(0.5)  # 0.75 and 0.25, or yes and no
    assert result.parts["checklist"].item() == pytest.approx(0.5)
    reward = judge(aspect="checklist", checklist={"removal": ("Is it gone?",)})
    other = reward.score(grey_batch(0.5))
    assert not other.valid_B.any()
    assert missing(other) == set()
    assert mix.applies(reward, grey_batch(0.5).samples).tolist() == [False]  # so it isn't a missing score


def test_a_failed_checklist_leaves_the_score_alone(server, judge, grey_batch):
    server.opinion = lambda asked: math.nan if asked.aspect == "checklist" else 0.5
    result = judge(checklist={"color": ("Is it red?",)}, max_attempts=1).score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx(0.5)
    assert result.parts["checklist"].isnan().all()
    assert missing(result) == set()
    assert result.parts["failed"].item() == pytest.approx(1 / 3)


def test_identical_images_are_asked_once(server, judge, grey_batch):
    result = judge().score(grey_batch(0.5, 0.5, 0.7, 0.5))
    assert len(server.asked) == 4  # two images, two aspects
    assert result.raw_B.tolist() == pytest.approx([0.6] * 4)


def test_the_mean_of_several_calls_with_seeds_of_their_own(server, judge, grey_batch):
    server.opinion = lambda asked: asked.body["seed"] / 9
    result = judge(calls=4, temperature=0.7, aspect="sc").score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx((0 + 1 + 2 + 3) / 4 / 9)
    assert [asked.body["seed"] for asked in server.asked] == [0, 1, 2, 3]
    assert {asked.body["temperature"] for asked in server.asked} == {0.7}


def test_the_mean_is_over_the_calls_that_were_answered(server, judge, grey_batch):
    server.opinion = lambda asked: asked.body["seed"] / 9
    server.fail("refusal")
    result = judge(calls=3, temperature=0.7, aspect="sc").score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx((1 + 2) / 2 / 9)
    assert result.parts["failed"].item() == pytest.approx(1 / 3)
    assert missing(result) == set()


TRANSPORT = {
    "429": "rate_limit",
    "500": "server",
    "408": "timeout",
    "400": "bad_request",
    "hang": "timeout",
    "cut": "connection",
    "html": "parse",
    "no_choices": "parse",
}
ANSWERS = {"garbage": "parse", "nan": "not_finite", "off_scale": "out_of_range", "refusal": "refusal"}
FAILURES = [
    *((fault, kind, "digits") for fault, kind in (TRANSPORT | ANSWERS).items()),
    *((fault, kind, "json") for fault, kind in (ANSWERS | {"length": "truncated"}).items()),
]


@pytest.mark.parametrize(("fault", "kind", "readout"), FAILURES)
def test_a_failure_is_a_missing_score_of_its_kind(
    server, judge, grey_batch, fault: str, kind: str, readout: str
):
    server.gives_logprobs = readout == "digits"
    server.fail(fault, "...")
    result = judge(max_attempts=2, timeout_s=0.2 if fault == "hang" else 60.0).score(grey_batch(0.5, 0.6))
    check_result("judge", result, 2)
    assert not result.valid_B.any()
    assert missing(result) == {kind}
    assert result.parts[f"missing_{kind}"].tolist() == [1.0, 1.0]
    assert result.parts["sc"].isnan().all()


@pytest.mark.parametrize("fault", ["429", "500", "hang", "cut", "garbage", "nan", "off_scale"])
def test_a_passing_failure_costs_another_try_and_no_score(server, judge, grey_batch, fault: str):
    server.fail(fault)
    result = judge(max_attempts=2, timeout_s=1.0 if fault == "hang" else 60.0).score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx(0.6)
    assert len(server.asked) == 3
    assert missing(result) == set()


@pytest.mark.parametrize("fault", ["400", "refusal"])
def test_what_asking_again_cannot_mend_is_asked_once(server, judge, grey_batch, fault: str):
    server.fail(fault, "...")
    judge(max_attempts=4).score(grey_batch(0.5))
    assert len(server.asked) == 1


def test_no_more_attempts_than_allowed(server, judge, grey_batch):
    server.fail("500", "...")
    judge(max_attempts=3).score(grey_batch(0.5))
    assert len(server.asked) == 3


def test_retry_after_is_waited_for(server, judge, grey_batch):
    server.fail("closed", "...")
    server.retry_after = "1"
    result = judge(max_attempts=2).score(grey_batch(0.5))
    assert result.valid_B.all()
    assert [asked.aspect for asked in server.asked] == ["sc", "sc", "pq"]


@pytest.mark.parametrize("retry_after", ["3600", "Fri, 01 Jan 2100 00:00:00 GMT"])
def test_a_wait_beyond_the_deadline_is_not_begun(server, judge, grey_batch, retry_after: str):
    server.fail("429", "...")
    server.retry_after = retry_after
    result = judge().score(grey_batch(0.5))
    assert missing(result) == {"rate_limit"}
    assert len(server.asked) == 1


def test_the_deadline_holds_over_all_calls_and_retries(server, judge, grey_batch):
    server.fail("hang", "...")
    result = judge(deadline_s=0.3, timeout_s=3600.0, max_attempts=100).score(grey_batch(0.5, 0.6))
    assert missing(result) == {"timeout"}
    assert len(server.asked) <= 2


def test_a_failing_endpoint_is_replaced_by_the_next(server, judge, grey_batch):
    server.fail("500", "...", endpoint="first")
    reward = judge("first", "second", max_attempts=2)
    result = reward.score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx(0.6)
    assert result.parts["fallback"].item() == 1.0
    # the first was given up after two tries, and rests: the second aspect does not ask it again
    assert [asked.endpoint for asked in server.asked] == ["first", "first", "second", "second"]


def test_a_rested_endpoint_is_asked_first_again(server, judge, grey_batch):
    server.fail("500", "500", endpoint="first")
    reward = judge("first", "second", max_attempts=2, rest_s=0.0)
    assert reward.score(grey_batch(0.5)).parts["fallback"].item() == 0.5
    assert reward.score(grey_batch(0.6)).parts["fallback"].item() == 0.0


def test_a_silent_endpoint_leaves_time_for_the_next(server, judge, grey_batch):
    server.fail("hang", "...", endpoint="first")
    result = judge("first", "second", aspect="sc", deadline_s=2.0, timeout_s=3600.0).score(grey_batch(0.5))
    assert result.raw_B.item() == pytest.approx(0.4)


def test_a_refusal_is_not_taken_to_another_judge(server, judge, grey_batch):
    server.fail("refusal", "...", endpoint="first")
    assert missing(judge("first", "second").score(grey_batch(0.5))) == {"refusal"}
    assert {asked.endpoint for asked in server.asked} == {"first"}


def test_requests_in_flight_are_bounded(server, judge, grey_batch):
    server.delay_s = 0.02
    judge(max_concurrency=3).score(grey_batch(*np.linspace(0, 1, 12)))
    assert len(server.asked) == 24
    assert server.max_in_flight == 3


JUDGE = """
import asyncio, json, sys
import numpy as np
from gvcot.config import decode
from rewards.judge.client import open_judge
from rewards.judge.config import JudgeConfig
from rewards.judge.prompts import Edit, case_of

async def main():
    config = decode(JudgeConfig, json.loads(sys.argv[1]))
    judge = await open_judge(config)
    edits = [Edit(sample_id="elsewhere", task="color", instruction="brighten the square",
                  before_HW3=np.full((16, 16, 3), 102, dtype=np.uint8),
                  after_HW3=np.full((16, 16, 3), level, dtype=np.uint8),
                  mask_HW=np.ones((16, 16), dtype=bool))
             for level in (0, 51, 255)]
    verdicts = await asyncio.gather(*(judge.judge(case_of(edit, config)) for edit in edits))
    await judge.close()
    print(json.dumps([verdict.scores for verdict in verdicts]))

asyncio.run(main())
"""


def test_another_process_pays_for_nothing_again(server, judge, grey_batch, tmp_path: Path):
    server.opinion = brightness
    options = {"cache": tmp_path / "scores.sqlite"}
    command = [sys.executable, "-c", JUDGE, json.dumps(to_dict(server.config(**options)))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.asked) == 6
    result = judge(**options).score(grey_batch(0.0, 0.2, 1.0))
    assert len(server.asked) == 6
    assert result.parts["cached"].tolist() == [1.0] * 3
    paid = json.loads(done.stdout)
    assert result.parts["sc"].tolist() == pytest.approx([scores["sc"] for scores in paid])
    assert result.raw_B.tolist() == pytest.approx([0.0, 0.2, 1.0])


def test_a_resumed_run_pays_for_what_failed_only(server, judge, grey_batch, tmp_path: Path):
    server.fail("500")
    options = {"cache": tmp_path / "scores.sqlite", "max_attempts": 1, "max_concurrency": 1}
    reward = judge(**options)
    assert reward.score(grey_batch(0.5, 0.6)).valid_B.tolist() == [False, True]
    reward.close()
    server.asked.clear()
    result = judge(**options).score(grey_batch(0.5, 0.6))
    assert result.valid_B.all()
    assert len(server.asked) == 2
    assert result.parts["cached"].tolist() == [0.0, 1.0]


def test_another_model_temperature_or_prompt_is_not_answered_from_the_cache(
    server, judge, grey_batch, tmp_path: Path
):
    cache = tmp_path / "scores.sqlite"
    batch = grey_batch(0.5)
    judge(cache=cache).score(batch)
    for options in ({"temperature": 0.5}, {"image_size": 64}, {"mask_context": True, "aspect": "sc"}):
        server.asked.clear()
        judge(cache=cache, **options).score(batch)
        assert server.asked, options
    server.gives_logprobs = False
    server.asked.clear()
    judge(cache=cache).score(batch)
    assert len(server.asked) == 2


def test_what_a_fallback_said_is_not_paid_for_again(server, grey_batch, tmp_path: Path):
    server.models = ("vlm", "other")
    server.fail("500", "...", endpoint="first")
    config = to_dict(server.config("first", "second", cache=tmp_path / "scores.sqlite", max_attempts=1))
    config["endpoints"][1]["model"] = "other"
    cached = []
    for _ in range(2):
        reward = VLMJudge(**config)
        cached.append(reward.score(grey_batch(0.5)).parts["cached"].item())
        reward.close()
    assert cached == [0.0, 1.0]
    assert [asked.endpoint for asked in server.asked] == ["first", "second", "second"]


def test_a_reward_survives_pickling_closing_and_use_from_a_fork(server, judge, grey_batch, tmp_path: Path):
    reward = judge(cache=tmp_path / "scores.sqlite", aspect="sc")
    before = reward.score(grey_batch(0.5))
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.score(grey_batch(0.5)).parts["cached"].item() == 1.0
    copy.close()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that waits for its parent's thread would wait for ever
        status = 1
        try:
            result = reward.score(grey_batch(0.5, 0.6))
            status = 0 if result.valid_B.all() and result.parts["cached"].tolist() == [1.0, 0.0] else 2
            reward.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    reward.close()
    assert torch.equal(reward.score(grey_batch(0.5)).raw_B, before.raw_B)


def test_an_empty_batch_has_no_scores(judge, grey_batch):
    result = judge().score(grey_batch(0.5).rows(torch.tensor([], dtype=torch.long)))
    check_result("judge", result, 0)


def test_the_judge_sees_large_images_and_the_outlined_region(server, judge, grey_batch):
    reward = judge(image_size=40, mask_context=True, aspect="sc")
    assert reward.requires == {"x_edit", "mask"}
    reward.score(grey_batch(1.0))
    before, marked, after = server.asked[0].images
    assert before.shape == marked.shape == after.shape == (48, 48, 3)
    assert (after == 255).all()
    assert (marked[12:24, 12:24] == before[12:24, 12:24]).all()
    assert (marked[11, 12:24] == (255, 0, 255)).all()


def test_a_recipe_builds_it_from_its_options(server):
    options = to_dict(server.config(mask_context=True))
    entry = RewardConfig(type="rewards.judge.reward:VLMJudge", options=options)
    built = build_rewards({"judge": entry}, {"x_edit", "mask"})["judge"]
    assert isinstance(built, VLMJudge)
    assert built.config == server.config(mask_context=True)
    with pytest.raises(ConfigError, match="rewards.judge: .* needs mask"):
        build_rewards({"judge": entry}, {"x_edit"})


def test_metadata_is_sent_where_it_is_wanted(server, judge, grey_batch):
    config = to_dict(server.config())
    judge().score(grey_batch(0.5))
    assert "metadata" not in server.asked[0].body
    server.asked.clear()
    config["endpoints"][0]["send_metadata"] = True
    reward = VLMJudge(**config)
    reward.score(grey_batch(0.5))
    reward.close()
    assert [asked.body["metadata"] for asked in server.asked] == [
        {"sample_id": "test/0", "aspect": "sc", "phase": "x_edit"},
        {"sample_id": "test/0", "aspect": "pq", "phase": "x_edit"},
    ]


def test_extra_fields_are_added_replace_ours_or_leave_them_out(server, judge, grey_batch):
    config = to_dict(server.config(aspect="sc"))
    config["endpoints"][0]["extra"] = {
        "max_tokens": None,
        "max_completion_tokens": 3,
        "seed": 7,
        "structured_outputs": {"regex": "[0-9]"},
    }
    reward = VLMJudge(**config)
    reward.score(grey_batch(0.5))
    reward.close()
    body = server.asked[0].body
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["seed"], body["top_logprobs"]) == (3, 7, 20)
    assert body["structured_outputs"] == {"regex": "[0-9]"}


def test_digits_ask_for_one_token_and_json_for_a_strict_schema(server, judge, grey_batch):
    judge(aspect="sc").score(grey_batch(0.5))
    server.gives_logprobs = False
    judge(aspect="sc").score(grey_batch(0.5))
    digits, strict = (asked.body for asked in server.asked)
    assert digits["structured_outputs"] == {"regex": "[0-9]"}
    assert (digits["max_tokens"], digits["logprobs"], digits["top_logprobs"]) == (1, True, 20)
    schema = strict["response_format"]["json_schema"]
    assert schema["strict"] is True
    assert schema["schema"]["properties"]["score"] == {"type": "integer", "enum": list(range(11))}
    assert "logprobs" not in strict


def test_log_probs_are_read_without_grammars_too(server, judge, grey_batch):
    server.knows_grammars = False
    assert judge().score(grey_batch(0.5)).raw_B.item() == pytest.approx(0.6)
    assert "structured_outputs" not in server.asked[0].body
    assert "response_format" not in server.asked[0].body


def test_one_bad_answer_at_start_does_not_decide_the_readout(server, judge, grey_batch):
    server.fail("garbage", "html", endpoint="probe")
    judge().score(grey_batch(0.5))
    assert "structured_outputs" in server.asked[0].body


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "vlm_judge: missing required key 'endpoints'"),
        ({"endpoints": []}, "endpoints is empty"),
        (
            {"endpoints": [{"base_url": "localhost:8000", "model": "m"}]},
            "endpoints.0.: base_url is 'localhost:8000'",
        ),
        ({"calls": 2}, "calls is 2 but temperature 0"),
        ({"aspect": "quality"}, "aspect: unknown value 'quality'"),
        ({"max_concurency": 2}, "did you mean 'max_concurrency'"),
        ({"aspect": "checklist"}, "aspect is 'checklist' but there is none"),
        ({"checklist": {"color": []}}, "checklist.color has no questions"),
        ({"deadline_s": 0.0}, "deadline_s is 0.0"),
        ({"min_mass": 1.5}, "min_mass is 1.5"),
    ],
)
def test_wrong_options_are_refused_when_the_reward_is_built(options: dict[str, Any], message: str):
    endpoints = {"endpoints": [{"base_url": "http://localhost:8000/v1", "model": "m"}]} if options else {}
    with pytest.raises(ConfigError, match=message):
        VLMJudge(**(endpoints | options))


@pytest.mark.parametrize(
    ("endpoint", "state", "message"),
    [
        ({"model": "vlm-2"}, {}, "it does not serve this model; did you mean 'vlm'"),
        ({}, {"key": "secret"}, "its list of models answered HTTP 401"),
        (
            {},
            {"faults": {"probe": ("400", "...")}},
            "no answer to a test question with 2 images.*digits: bad_request.*json",
        ),
        ({"readout": "digits"}, {"gives_logprobs": False}, "readout 'digits'.*free_digits: parse"),
        ({"readout": "json"}, {"faults": {"probe": ("garbage", "...")}}, "readout 'json'.*json: parse"),
        ({"api_key_env": "NO_SUCH_KEY"}, {}, "NO_SUCH_KEY is not set"),
    ],
)
def test_a_judge_that_cannot_be_used_is_a_config_error_at_start(
    server, endpoint: dict[str, Any], state: dict[str, Any], message: str
):
    for name, value in state.items():
        setattr(server, name, value)
    config = to_dict(server.config(max_attempts=1))
    config["endpoints"][0] |= endpoint
    with pytest.raises(ConfigError, match=message) as caught:
        VLMJudge(**config).start()
    assert server.url() in str(caught.value)


def test_the_key_comes_from_the_environment(server, grey_batch, monkeypatch: pytest.MonkeyPatch):
    server.key = "secret"
    monkeypatch.setenv("JUDGE_KEY", "secret")
    config = to_dict(server.config())
    config["endpoints"][0]["api_key_env"] = "JUDGE_KEY"
    reward = VLMJudge(**config)
    assert reward.score(grey_batch(0.5)).valid_B.all()
    reward.close()
    assert "secret" not in pickle.dumps(reward).decode("latin1")


@pytest.mark.parametrize(("fault", "kind"), [("503", "server"), ("429", "rate_limit"), ("cut", "connection")])
def test_a_judge_that_is_down_ends_the_run_and_a_later_start_goes_on(
    server, judge, grey_batch, fault: str, kind: str
):
    server.fail(fault, "...", endpoint="probe")
    reward = judge(max_attempts=2)
    with pytest.raises(RewardError, match=f"no judge can be asked: vlm at .*{kind}.*it resumes"):
        reward.score(grey_batch(0.5))
    server.faults.clear()
    assert reward.score(grey_batch(0.5)).valid_B.all()


def test_an_address_where_nobody_listens_is_named(server, judge):
    config = to_dict(server.config(max_attempts=1))
    config["endpoints"][0]["base_url"] = "http://127.0.0.1:1/v1"
    with pytest.raises(RewardError, match="http://127.0.0.1:1/v1: connection"):
        VLMJudge(**config).start()


def test_an_endpoint_that_was_down_at_start_is_left_to_the_others(server, grey_batch):
    config = to_dict(server.config("first", "second", max_attempts=1))
    config["endpoints"][0]["base_url"] = "http://127.0.0.1:1/v1"
    reward = VLMJudge(**config)
    assert reward.score(grey_batch(0.5)).raw_B.item() == pytest.approx(0.6)
    reward.close()


def test_an_endpoint_that_turns_out_unusable_in_mid_run_is_a_missing_score(
    server, caplog: pytest.LogCaptureFixture
):
    server.models = ("another",)
    config = server.config()

    async def ask() -> float | Missing:
        endpoint = Endpoint(config.endpoints[0], config)  # it was down when the run began
        asked = question(case_of(PROBE_EDIT, config), "sc", SC)
        for _ in range(3):
            reading = await endpoint.ask(asked, 0, asyncio.get_running_loop().time() + 5)
        await endpoint.close()
        return reading

    reading = asyncio.run(ask())
    assert isinstance(reading, Missing)
    assert reading.kind == "bad_request"
    assert "does not serve this model" in reading.detail
    assert len(caplog.records) == 1  # it rests then, and isn't asked for its models with every edit


def test_a_refused_test_question_does_not_choose_another_readout(server, judge):
    server.fail("refusal", endpoint="probe")
    with pytest.raises(RewardError, match="no judge can be asked: .*refusal"):
        judge(max_attempts=1).start()


def test_errors_can_be_sent_between_processes(server):
    server.key = "secret"
    with pytest.raises(GvcotError) as caught:
        VLMJudge(**to_dict(server.config())).start()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
