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
from gvcot.data.scenes import expressions, tasks, world
from gvcot.errors import DataError

VOCAB_SIZE = 512
VOCAB_PATH = Path(__file__).parents[2] / "assets" / "vocab.json"

SPECIALS = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")
"""Ids 0 to 4: padding, begin and end of text, begin and end of image."""

COORDINATES = tuple(f"<{axis}{i}>" for axis in "xy" for i in range(32))
"""Positions in words, for chains that reason in text: 1/32 of the image side each."""

PUNCTUATION = tuple(".,:;!?'\"()-/<>=%+")

# Words of tasks and chains that the tables don't hold.
FURTHER_WORDS = """
x y
a an the of to in on at by from with without and or not no yes is are it its this that there where which what
then fourth last next only both all each every other another same different
i think step region area place box mask image object objects edit change result answer position center corner
between inside outside around over under behind front side edge half upper lower row column
remove add draw make turn set give keep replace swap move rotate tilt flip stretch split fill paint
material texture pattern background foreground extract
dotted checkered metal wood glass stone matte gray dark light bright pale solid colors
state open closed broken whole cracked full empty lit unlit wet frozen clean dirty new old off
person head face eyes mouth hair hat arm leg legs hand body smile happy sad sitting standing walking running
jumping waving raise lower pose motion looking facing upside clockwise counterclockwise degrees
style sketch outline pixel cartoon mosaic blurred blurry sharp
structure round hollow ring line dot dots stripe band spot part parts
restore repair fix defect scratch stain noise hole missing watermark text clear
attribute subject two three four five multiple several one wide narrow tall short bigger slightly
top bottom left right middle big tiny huge things also as well while keeping them they these those
cut out alone isolate only mirror reflect metallic golden silver wooden paper fabric brick water night day
pixelated scribble smudge letter logo sign color colour painted marked described clockwise asleep awake
grow lean leaning curved zigzag border frame global
"""

_WORD = re.compile(r"\w+|[^\w\s]")
_PLACEHOLDER = re.compile(r"{\w+}")


def split_words(text: str) -> list[str]:
    """Lower-cased words and punctuation marks of a text or template."""
    return _WORD.findall(_PLACEHOLDER.sub(" ", text.lower()))


def _texts() -> Iterable[str]:
    """Every text from which sentences are put together."""
    yield from world.COLORS
    yield from world.BACKGROUNDS
    yield from world.SHAPES
    yield from world.MATERIALS
    yield from world.SIZES
    yield from world.DIRECTIONS
    yield from world.COLOR_FACTS
    yield from world.SHAPE_FACTS
    yield from expressions.ORDINALS
    yield from expressions.SUPERLATIVES
    yield from expressions.SUPERLATIVES.values()
    yield from expressions.RELATIONS.values()
    yield "largest smallest"
    yield "the shape that is the color of"
    for task in tasks.TASK_TABLE.values():
        yield from task.phrases()
    yield prompts.SYSTEM
    yield prompts.mask_prompt("")
    yield prompts.locate_prompt("")
    yield prompts.describe_prompt()
    yield FURTHER_WORDS


def known_words() -> set[str]:
    """Every word that a sample or a prompt can use, and those set aside for later tasks."""
    boxes = (prompts.box_words((i, i, i + 1, i + 1), (32, 32)) for i in range(32))  # words with marks inside
    return {word for text in _texts() for word in split_words(text)} | set(" ".join(boxes).split())


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
