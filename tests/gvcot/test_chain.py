"""Which segments stand where in each chain."""

from __future__ import annotations

import pytest
import torch

from gvcot import prompts
from gvcot.chain import Chain, Drop, pad_ids, unpad
from gvcot.data import scenes
from gvcot.errors import ConfigError, DataError
from gvcot.model.pretrained import Pretrained
from gvcot.model.tokenizer import WordTokenizer
from gvcot.sampler import condition_of
from gvcot.types import ChainConfig, Condition


def chain_of(name: str, *, has_vit: bool = True, **options: tuple[str, ...]) -> Chain:
    return Chain(ChainConfig(name=name, **options), WordTokenizer(), has_vit=has_vit)


def condition(policy: Pretrained, chain: Chain) -> Condition:
    return condition_of(scenes.samples("val", range(2)), policy.model.config, policy.codec, chain)


def test_the_gvcot_prefix_is_system_source_latents_source_pixels_instruction(policy: Pretrained) -> None:
    chain = chain_of("gvcot")
    segments = chain.prefix(condition(policy, chain), 1)
    assert [s.kind for s in segments] == ["text", "vae", "vit", "text"]
    words = policy.tokenizer
    assert segments[0].data.tolist() == words.encode(prompts.SYSTEM)
    assert segments[3].data.tolist() == words.encode(scenes.generate(0, 1, split="val").instruction)
    assert [p.name for p in chain.phases] == ["x_cot", "x_edit"]


@pytest.mark.parametrize(("name", "phase"), [("direct", "x_edit"), ("mask", "x_cot")])
def test_one_image_chains_have_no_system_prompt(policy: Pretrained, name: str, phase: str) -> None:
    chain = chain_of(name)
    segments = chain.prefix(condition(policy, chain), 0)
    assert [s.kind for s in segments] == ["vae", "vit", "text"]
    assert [p.name for p in chain.phases] == [phase]
    assert not chain.sees_decoded


@pytest.mark.parametrize(
    ("name", "phases", "reasons_first"),
    [
        ("gvcot", [("x_cot", "painted"), ("x_edit", "target")], True),
        ("edit_first", [("x_edit", "target"), ("x_cot", "painted")], False),
        ("blank", [("x_cot", "source"), ("x_edit", "target")], True),
        ("direct", [("x_edit", "target")], False),
        ("mask", [("x_cot", "painted")], False),
    ],
)
def test_a_chain_says_what_is_drawn_in_which_order(
    name: str, phases: list[tuple[str, str]], reasons_first: bool
) -> None:
    chain = chain_of(name)
    assert [(p.name, p.truth) for p in chain.phases] == phases
    assert chain.reasons_first == reasons_first


@pytest.mark.parametrize("name", ["edit_first", "blank"])
def test_the_controls_have_the_context_of_gvcot(policy: Pretrained, name: str) -> None:
    control, gvcot = chain_of(name), chain_of("gvcot")
    pairs = zip(control.prefix(condition(policy, control), 0), gvcot.prefix(condition(policy, gvcot), 0),
                strict=True)  # fmt: skip
    assert all(a.kind == b.kind and torch.equal(a.data, b.data) for a, b in pairs)
    assert control.feedback_kinds == gvcot.feedback_kinds


def test_the_masking_chain_asks_for_a_mask(policy: Pretrained) -> None:
    chain = chain_of("mask")
    instruction = scenes.generate(0, 0, split="val").instruction
    asked = chain.prefix(condition(policy, chain), 0)[-1].data.tolist()
    assert asked == policy.tokenizer.encode(prompts.mask_prompt(instruction))


@pytest.mark.parametrize(
    ("feedback", "has_vit", "kinds"),
    [
        (("vae", "vit"), True, ["vae", "vit"]),
        (("vae", "vit"), False, ["vae"]),
        (("vae",), True, ["vae"]),
        (("vit",), True, ["vit"]),
    ],
)
def test_a_drawn_image_is_fed_back_as_asked_and_as_the_model_can(
    feedback: tuple[str, ...], has_vit: bool, kinds: list[str]
) -> None:
    chain = chain_of("gvcot", has_vit=has_vit, feedback=feedback)
    latents, pixels = torch.randn(16, 64), torch.zeros(3, 64, 64)
    segments = chain.feedback(latents, pixels if has_vit else None, (4, 4))
    assert [s.kind for s in segments] == kinds
    assert chain.sees_decoded == ("vit" in kinds)
    for segment in segments:
        assert segment.data is (latents if segment.kind == "vae" else pixels)


def test_conditions_are_dropped_one_by_one(policy: Pretrained) -> None:
    chain = chain_of("gvcot")
    given = condition(policy, chain)
    assert [s.drop for s in chain.prefix(given, 0)] == [False] * 4
    assert [s.drop for s in chain.prefix(given, 0, Drop(text=True))] == [False, False, False, True]
    assert [s.drop for s in chain.prefix(given, 0, Drop(vae=True))] == [False, True, False, False]
    assert [s.drop for s in chain.prefix(given, 0, Drop(vit=True))] == [False, False, True, False]
    fed_back = chain.feedback(torch.randn(16, 64), torch.zeros(3, 64, 64), (4, 4), Drop(vae=True))
    assert [s.drop for s in fed_back] == [True, False]


def test_an_unknown_chain_is_answered_with_the_closest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gvcot'"):
        chain_of("gvcott")


def test_a_reasoning_image_that_nothing_would_see_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"use feedback=\[vae\]"):
        chain_of("gvcot", has_vit=False, feedback=("vit",))
    with pytest.raises(ConfigError, match="leaves nothing"):
        chain_of("gvcot", feedback=())
    chain_of("direct", has_vit=False, feedback=())  # a single image needs none


def test_an_unknown_word_of_an_instruction_is_named() -> None:
    with pytest.raises(DataError, match="zebra"):
        chain_of("direct").encode_prompts(["remove the zebra"])


def test_ragged_ids_are_padded_and_recovered() -> None:
    rows = [[5, 6, 7], [8], []]
    padded = pad_ids(rows)
    assert padded.shape == (3, 3)
    assert [unpad(row).tolist() for row in padded] == rows
