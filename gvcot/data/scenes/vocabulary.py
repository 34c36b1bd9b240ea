"""The word list of the small tokenizer, enumerated from the world's tables, the tasks and the prompts.

`python -m gvcot.data.scenes.vocabulary` writes it to gvcot/assets/vocab.json. Checkpoints depend on the ids,
so the file is frozen: new words take reserved places, the ids of old ones never change.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from gvcot import prompts
from gvcot.data.scenes import expressions, generator, tasks, world
from gvcot.errors import DataError

VOCAB_SIZE = 512
VOCAB_PATH = Path(__file__).parents[2] / "assets" / "vocab.json"

SPECIALS = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")
"""Ids 0 to 4: padding, begin and end of text, begin and end of image."""

COORDINATES = tuple(f"<{axis}{i}>" for axis in "xy" for i in range(32))
"""Positions in words, for chains that reason in text: 1/32 of the image side each."""

PUNCTUATION = tuple(".,:;!?'\"()-/<>=%+")

# Words of chains and answers to come that no table holds.
FURTHER_WORDS = """
a an of to in on at from with without and or not no yes is are it this that there where which what
then next last all each every other another same different first second third fourth
i think step region area place box mask image object objects edit change result answer position center corner
between inside outside around over under behind front side edge upper lower row column
"""

_WORD = re.compile(r"\w+|[^\w\s]")
_PLACEHOLDER = re.compile(r"{\w+}")


def split_words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks of a text or template."""
    return _WORD.findall(_PLACEHOLDER.sub(" ", text.lower()))


def _texts() -> Iterable[str]:
    """Every text from which sentences are put together."""
    for table in (
        world.COLORS,
        world.BACKGROUNDS,
        world.SHAPES,
        world.MATERIALS,
        world.SIZES,
        world.DIRECTIONS,
        world.COLOR_FACTS,
        world.SHAPE_FACTS,
        expressions.ORDINALS,
        expressions.SUPERLATIVES,
        expressions.SUPERLATIVES.values(),
        expressions.RELATIONS.values(),
        generator.DISTRACTORS,
    ):
        yield from table
    for states in world.STATES.values():
        yield from states
    yield "largest smallest lighter darker"
    yield "the thing that is the color of"
    for task in tasks.TASK_TABLE.values():
        yield from task.phrases
        for wording in task.wordings:
            yield from (*wording.train, *wording.bench)
    yield prompts.SYSTEM
    yield prompts.mask_prompt("")
    yield prompts.locate_prompt("")
    yield prompts.describe_prompt()
    yield prompts.inventory_prompt()
    yield FURTHER_WORDS


def known_words() -> set[str]:
    """Every word that a sample or a prompt can use, and those set aside for later tasks."""
    points = (prompts.point_words((i, i), (32, 32)) for i in range(32))  # words with marks inside
    return {word for text in _texts() for word in split_words(text)} | set(" ".join(points).split())


def enumerate_vocabulary() -> list[str]:
    """Words in the order of their ids, made from nothing: specials, digits, punctuation, coordinates, words
    in alphabetical order, then reserved places."""
    fixed = (*SPECIALS, *"0123456789", *PUNCTUATION, *COORDINATES)
    tokens = [*fixed, *sorted(known_words() - set(fixed))]
    return tokens + [f"<reserved_{i}>" for i in range(VOCAB_SIZE - len(tokens))]


def extend(frozen: Sequence[str], words: Iterable[str]) -> list[str]:
    """The frozen word list with new words, in alphabetical order, on its first reserved places.

    Raises:
        DataError: There are more new words than reserved places.
    """
    tokens = list(frozen)
    places = [i for i, token in enumerate(tokens) if token.startswith("<reserved_")]
    new = sorted(set(words) - set(frozen))
    if len(new) > len(places):
        raise DataError(
            f"{len(new)} new words ({', '.join(new[:5])}, ...) for {len(places)} reserved places of the "
            "vocabulary; say the new phrases in known words, or grow VOCAB_SIZE and train anew"
        )
    for place, word in zip(places, new, strict=False):
        tokens[place] = word
    return tokens


def read(path: Path = VOCAB_PATH) -> list[str]:
    """The frozen words in the order of their ids."""
    ids: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))
    return sorted(ids, key=ids.__getitem__)


def write(tokens: Sequence[str], path: Path = VOCAB_PATH) -> None:
    """Write word -> id as JSON, one word a line."""
    ids = {token: i for i, token in enumerate(tokens)}
    path.write_text(json.dumps(ids, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(extend(read(), known_words()) if VOCAB_PATH.exists() else enumerate_vocabulary())
