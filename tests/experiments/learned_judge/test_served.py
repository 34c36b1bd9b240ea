"""What the judge is trained on is what a server makes of the client's messages."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image

from experiments.learned_judge.agreement import served_scores
from experiments.learned_judge.data import Pairs
from experiments.learned_judge.model import DIGITS, LearnedJudge, hidden, judged, patches, scores_of
from experiments.learned_judge.packing import ASPECTS, Asked
from gvcot.config import load
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.images import enlarge
from rewards.judge.prompts import Edit, case_of, messages, questions
from rewards.judge.readout import answer_params
from rewards.judge.serve_config import ServeConfig
from rewards.judge.vllm_server import CHECKOUT, running_vllm

PYTHON = CHECKOUT / ".venv-vllm" / "bin" / "python"

CONFIG = JudgeConfig(endpoints=(EndpointConfig(base_url="http://nowhere/v1", model="judge"),))


def asked(pairs: Pairs, number: int, aspect: str, size: int | None = None) -> list[dict[str, Any]]:
    """The messages that the client sends."""
    scene = pairs.scene_N[number]
    edit = Edit(
        sample_id="",
        task="",
        instruction=pairs.instructions[scene],
        before_HW3=enlarge(pairs.before_SHW3[scene], size),
        after_HW3=enlarge(pairs.after_NHW3[number], size),
        mask_HW=pairs.mask_SHW[scene],
    )
    (question,) = questions(case_of(edit, CONFIG), CONFIG)[aspect]  # pyright: ignore
    return messages(question, "digits")


def served(judge: LearnedJudge, pairs: Pairs, number: int, aspect: str, size: int | None = None) -> Any:
    """The inputs that Hugging Face's processor makes of them."""
    said = asked(pairs, number, aspect, size)
    urls = [part["image_url"]["url"] for part in said[1]["content"] if part["type"] == "image_url"]
    images = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    text = judge.processor.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return judge.processor(text=[text], images=images, return_tensors="pt")  # pyright: ignore


def answered(judge: LearnedJudge, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return judge.network(**inputs).logits[0, -1, judge.digit_ids].log_softmax(dim=-1)


@pytest.mark.parametrize("aspect", ASPECTS)
def test_the_prompt_as_served_is_the_prompt_as_trained_token_by_token(
    judge: LearnedJudge, pairs: Pairs, aspect: Any
) -> None:
    for number in range(0, len(pairs), 8):
        ids = served(judge, pairs, number, aspect).input_ids[0].tolist()
        assert ids == judge.packer.question(pairs.instructions[pairs.scene_N[number]], aspect)
        assert len(ids) < 128
        byte_tokens = judge.tokenizer.convert_ids_to_tokens(ids)
        assert max(map(len, byte_tokens)) > 400  # the system prompt is one token


def test_questions_in_one_row_are_answered_as_those_that_are_asked_alone(
    judge: LearnedJudge, pairs: Pairs
) -> None:
    """Several scenes, edits and expressions in one packed batch, against one request each."""
    scenes, edits = [0, 3], [[0, 2, 4], [15, 16]]
    rows = [
        Asked(instruction=pairs.instructions[scene], num_edits=len(few), expressions=["the red circle"] * 2)
        for scene, few in zip(scenes, edits, strict=True)
    ]
    numbers = np.concatenate(edits)
    assert [*np.unique(pairs.scene_N[numbers])] == scenes
    packed = judge.packer(rows)
    with torch.no_grad():
        states = hidden(judge.network, packed, pairs.before_SHW3[scenes], pairs.after_NHW3[numbers])
        logits_N2V = judge.network.lm_head(states[packed.answer_N2])
    found_N2X = logits_N2V[..., judge.digit_ids].log_softmax(dim=-1)
    for row, number in enumerate(numbers):
        for column, aspect in enumerate(ASPECTS):
            alone_X = answered(judge, served(judge, pairs, number, aspect))
            torch.testing.assert_close(found_N2X[row, column], alone_X, atol=1e-4, rtol=0)
    assert found_N2X.std(dim=0).min() > 1e-3  # the edits are told apart at all


def test_scores_are_the_expectation_over_the_digits(judge: LearnedJudge, pairs: Pairs) -> None:
    (score,) = judged(judge, [pairs.instructions[0]], pairs.before_SHW3[[0]], pairs.after_NHW3[[1]])
    p_X = answered(judge, served(judge, pairs, 1, "sc")).exp()
    assert score[0] == pytest.approx(float(p_X @ torch.arange(10.0)) * 10 / 9, abs=1e-4)


def test_images_that_a_client_has_enlarged_are_seen_as_they_were(judge: LearnedJudge, pairs: Pairs) -> None:
    plain, large = (served(judge, pairs, 1, "sc", size) for size in (None, 448))
    torch.testing.assert_close(plain.pixel_values, large.pixel_values)
    torch.testing.assert_close(plain.pixel_values[16:], patches(pairs.after_NHW3[[1]], 16))


def test_marks_without_their_digest_are_all_that_is_lost_of_a_text(judge: LearnedJudge) -> None:
    text = "färbe den Kreis <instruction-0123456789ab> um"
    again = judge.tokenizer.decode(judge.tokenizer(text).input_ids)
    assert again == text.replace("-0123456789ab", "")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM here; `make vllm` builds its environment")
def test_vllm_says_the_digits_log_probs_that_hugging_face_says(
    judge: LearnedJudge, pairs: Pairs, tmp_path: Path
) -> None:
    judge.save(tmp_path, {})
    recipe = load(ServeConfig, "judge/learned", [f"vllm.model={tmp_path}", "vllm.start_timeout_s=3600"])
    assert recipe.vllm is not None
    with running_vllm(recipe.vllm) as url:
        client = openai.OpenAI(base_url=url, api_key="none")
        for number, aspect in ((0, "sc"), (0, "pq"), (9, "sc"), (40, "pq")):
            said = client.chat.completions.create(
                model=recipe.vllm.name,
                messages=asked(pairs, number, aspect),  # pyright: ignore
                **answer_params("score", "digits"),
            )
            logprobs = said.choices[0].logprobs
            assert logprobs is not None
            assert logprobs.content is not None
            found = {top.token: top.logprob for top in logprobs.content[0].top_logprobs}
            alone_X = answered(judge, served(judge, pairs, number, aspect))
            assert [found[digit] for digit in DIGITS] == pytest.approx(alone_X.tolist(), abs=1e-3)
        endpoint = EndpointConfig(base_url=url, model=recipe.vllm.name)
        few = replace(pairs, scene_N=pairs.scene_N[:8], after_NHW3=pairs.after_NHW3[:8])
        scores_N2 = served_scores(replace(CONFIG, endpoints=(endpoint,)), few)
    assert scores_N2 == pytest.approx(scores_of(judge, few), abs=1e-2)
