"""The word tokenizer knows every word of the world and the prompts, and says which words it doesn't."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvcot import prompts
from gvcot.data import scenes
from gvcot.data.scenes.tasks import TASK_TABLE
from gvcot.data.scenes.vocabulary import (
    SPECIALS,
    VOCAB_SIZE,
    enumerate_vocabulary,
    extend,
    known_words,
    read,
    write,
)
from gvcot.errors import DataError
from gvcot.model.tokenizer import WordTokenizer

TOKENIZER = WordTokenizer()
WORDS = read()


def test_control_tokens_and_size():
    ids = TOKENIZER.token_ids
    assert (TOKENIZER.pad_id, ids.bos, ids.eos, ids.boi, ids.eoi) == (0, 1, 2, 3, 4)
    assert tuple(WORDS[:5]) == SPECIALS
    assert TOKENIZER.vocab_size == len(WORDS) == len(set(WORDS)) == VOCAB_SIZE == 512


def test_words_are_ids_whatever_their_case_and_spacing():
    expected = [WORDS.index(word) for word in ("remove", "the", "star", ".")]
    assert TOKENIZER.encode("remove the star .") == expected
    assert TOKENIZER.encode("  Remove THE\tstar.") == expected
    assert TOKENIZER.decode(expected) == "remove the star ."
    assert TOKENIZER.encode("") == []


def test_coordinates_and_digits_are_whole_words():
    assert [WORDS[i] for i in TOKENIZER.encode("<x3><y31>, 7!")] == ["<x3>", "<y31>", ",", "7", "!"]


@given(st.lists(st.sampled_from([w for w in WORDS[5:] if not w.startswith("<reserved")]), max_size=12))
def test_decoding_gives_the_words_back(words):
    text = " ".join(words)
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_control_tokens_and_padding_are_not_text():
    star = WORDS.index("star")
    assert TOKENIZER.decode([1, star, 2, 0, 0]) == "star"


@pytest.mark.parametrize("level", scenes.LEVELS)
@pytest.mark.parametrize(("split", "count"), [("train", 200), ("val", 60), ("bench", 57)])
def test_every_instruction_and_caption_is_known(split, count, level):
    for sample in scenes.samples(split, range(count), seed=11, world=scenes.WorldConfig(level=level)):
        for text in (sample.instruction, sample.region_caption, prompts.mask_prompt(sample.instruction)):
            ids = TOKENIZER.encode(text)
            assert min(ids) > 4
            assert len(ids) <= 64
        assert min(TOKENIZER.encode(sample.scene_caption)) > 4


def test_every_wording_of_every_task_is_known():
    for task in TASK_TABLE.values():
        for wording in task.wordings:
            for text in (*wording.train, *wording.bench):
                assert set(re.sub(r"{\w+}", " ", text).split()) <= set(WORDS)


@pytest.mark.parametrize(
    "text", [prompts.SYSTEM, prompts.describe_prompt(), prompts.mask_prompt("remove it")]
)
def test_every_prompt_is_known(text):
    assert TOKENIZER.encode(text)


def test_unknown_words_are_named_with_the_closest_known_ones():
    with pytest.raises(DataError, match=r"'Stra' \(closest: star.*'qqqq' \(closest: none\)"):
        TOKENIZER.encode("remove the Stra and the qqqq")
    with pytest.raises(DataError, match="unknown"):
        TOKENIZER.encode("<unknown>")


@pytest.mark.parametrize("bad", [-1, 512])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(DataError, match="0 to 511"):
        TOKENIZER.decode([5, bad])


def test_frozen_file_holds_every_word_and_is_what_the_command_writes(tmp_path):
    assert extend(WORDS, known_words()) == WORDS, "run: python -m gvcot.data.scenes.vocabulary"
    write(WORDS, tmp_path / "vocab.json")
    assert read(tmp_path / "vocab.json") == WORDS


def test_vocabulary_made_from_nothing_is_sorted_and_complete():
    words = enumerate_vocabulary()
    assert len(words) == VOCAB_SIZE
    assert known_words() <= set(words)
    plain = [w for w in words if w.isalpha()]
    assert plain == sorted(plain)


def test_new_words_take_reserved_places_and_move_no_id():
    grown = extend(WORDS, ["zebra", "apple", "star"])
    changed = [(old, new) for old, new in zip(WORDS, grown, strict=True) if old != new]
    assert [new for _, new in changed] == ["apple", "zebra"]
    assert all(old.startswith("<reserved_") for old, _ in changed)
    with pytest.raises(DataError, match="reserved places"):
        extend(WORDS, [f"word{i}" for i in range(VOCAB_SIZE)])
