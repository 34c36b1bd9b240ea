"""The judge against real vLLM: a tiny random Qwen2.5-VL, made here, served in vLLM's own environment."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
import torch

from gvcot.errors import ConfigError, ResourceError
from gvcot.torchvision_cpu import declare_missing_operators
from rewards.judge.client import Verdict, open_judge
from rewards.judge.config import EndpointConfig, JudgeConfig
from rewards.judge.prompts import Edit, case_of, messages, questions
from rewards.judge.readout import answer_params
from rewards.judge.serve_config import VLLMConfig
from rewards.judge.vllm_server import CHECKOUT, running_vllm

PYTHON = CHECKOUT / ".venv-vllm" / "bin" / "python"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.is_file(), reason="no vLLM here; `make vllm` builds its environment"),
]

SPECIAL = ("endoftext", "im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")

CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'text' %}{{ part.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif -%}
{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def make_model(folder: Path) -> None:
    """A Qwen2.5-VL of random weights with a byte-level tokenizer, in Hugging Face's format."""
    declare_missing_operators()
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    special = [f"<|{name}|>" for name in SPECIAL]
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        ["yes", "no"], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e4},
            "bos_token_id": None,
            "eos_token_id": ids["im_end"],
            "pad_token_id": ids["endoftext"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).float().eval().save_pretrained(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size),
        video_processor=Qwen2VLVideoProcessor(size=size),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("judge")
    make_model(folder)
    config = VLLMConfig(
        model=str(folder),
        dtype="float32",
        max_model_len=4096,
        max_num_seqs=8,
        enforce_eager=True,
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    with running_vllm(config) as url:
        yield url
    with pytest.raises(httpx.TransportError):  # it is gone
        httpx.get(url.removesuffix("/v1") + "/health", trust_env=False)


def edit() -> Edit:
    after_HW3 = np.full((64, 64, 3), 128, dtype=np.uint8)
    after_HW3[16:48, 16:48] = (200, 0, 0)
    return Edit(
        sample_id="test/0",
        task="color",
        instruction="make the square red",
        before_HW3=np.full((64, 64, 3), 128, dtype=np.uint8),
        after_HW3=after_HW3,
        mask_HW=np.ones((64, 64), dtype=bool),
    )


def judge_config(url: str, **options: object) -> JudgeConfig:
    asked = {name: options.pop(name) for name in ("readout", "extra") if name in options}
    endpoint = EndpointConfig(base_url=url, model="judge", **asked)  # pyright: ignore
    return JudgeConfig(endpoints=(endpoint,), deadline_s=300, timeout_s=120, **options)  # pyright: ignore


def verdict_of(config: JudgeConfig) -> Verdict:
    async def ask() -> Verdict:
        judge = await open_judge(config)
        try:
            return await judge.judge(case_of(edit(), config))
        finally:
            await judge.close()

    return asyncio.run(ask())


def test_scores_are_expectations_over_the_digits_that_vllm_reports(url: str) -> None:
    """What the client makes of a question is what the raw log-probs say, and they are a distribution."""
    config = judge_config(url)
    verdict = verdict_of(config)
    (question,) = questions(case_of(edit(), config), config)["sc"]
    raw = openai.OpenAI(base_url=url, api_key="none").chat.completions.create(
        model="judge",
        messages=messages(question, "digits"),  # pyright: ignore
        temperature=0.0,
        **answer_params("score", "digits"),
    )
    logprobs = raw.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    by_digit = {t.token: math.exp(t.logprob) for t in logprobs.content[0].top_logprobs if t.token.isdigit()}
    assert sum(by_digit.values()) == pytest.approx(1.0, abs=1e-3)
    assert len(by_digit) == 10
    expected = sum(p * int(digit) for digit, p in by_digit.items()) * 10 / 9
    assert verdict.scores["sc"] == pytest.approx(expected, abs=0.02)
    assert set(verdict.scores) == {"sc", "pq"}


def test_a_model_that_can_not_finish_a_sentence_is_refused_for_json(url: str) -> None:
    with pytest.raises(ConfigError, match=r"readout 'json' \(json: truncated, cut off at"):
        verdict_of(judge_config(url, readout="json"))


def test_scores_by_schema(url: str) -> None:
    """As a model that finishes its sentences gives them: a random one must, by a limit on the reason."""
    properties = {
        "reason": {"type": "string", "maxLength": 20},
        "score": {"type": "integer", "enum": list(range(11))},
    }
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": schema}}
    scores = verdict_of(judge_config(url, readout="json", extra={"response_format": form})).scores
    assert set(scores) == {"sc", "pq"}
    assert all(score in range(11) for score in scores.values())


def test_checklists_and_outlines(url: str) -> None:
    listed = judge_config(url, checklist={"color": ("Is it red?",)}, mask_context=True)
    assert 0 < verdict_of(listed).scores["checklist"] < 1


def test_a_model_that_does_not_load_is_told_with_vllm_s_last_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with (
        pytest.raises(ResourceError, match=r"vLLM ended with exit code 1 while starting. The end of its"),
        running_vllm(VLLMConfig(model=str(tmp_path), env={"HF_HUB_OFFLINE": "1"})),
    ):
        pass
