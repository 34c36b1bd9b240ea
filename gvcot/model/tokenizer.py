"""The small model's tokenizer: a word is a token, and every word is known.

It stands where Qwen2.5's byte-pair tokenizer stands beside the large model, so it has the same four control
tokens: begin and end of text, begin and end of image.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from gvcot.errors import DataError
from gvcot.model.config import TokenIds

VOCAB_PATH = Path(__file__).parents[1] / "assets" / "vocab.json"

WORDS_FILE = "words.json"
"""The vocabulary inside a checkpoint folder."""

_UNKNOWN = "<unknown>"
# Angle-bracketed words (<x12>, <reserved_3>) are whole; then runs of letters and digits; then single marks.
_WORD = Regex(r"<[a-z]+_?\d*>|\w+|[^\w\s]")


class Tokenizer(Protocol):
    """What the rest of the system knows of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        ...

    @property
    def token_ids(self) -> TokenIds:
        """The control tokens that the model puts around texts and images."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without begin or end of text. DataError for text that it cannot take."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without control tokens. DataError for ids that it does not have."""
        ...

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder."""
        ...


class WordTokenizer:
    """Lower-cases, splits at spaces and punctuation, and looks words up in a frozen list.

    Example:
        tokenizer = WordTokenizer()
        tokenizer.decode(tokenizer.encode("Remove the star."))   # "remove the star ."
    """

    pad_id = 0
    """Right padding."""

    def __init__(self, vocab_path: Path = VOCAB_PATH) -> None:
        """Args:
        vocab_path: JSON object, word -> id; the ids are 0, 1, 2, ... and the first five are the specials.
        """
        vocab: dict[str, int] = json.loads(vocab_path.read_text(encoding="utf-8"))
        self._words = tuple(sorted(vocab, key=vocab.__getitem__))
        # The lookup needs a name for what it doesn't know; `encode` never lets that id out.
        self._unknown_id = len(vocab)
        lookup = models.WordLevel({**vocab, _UNKNOWN: self._unknown_id}, unk_token=_UNKNOWN)
        self._tokenizer = tokenizers.Tokenizer(lookup)
        self._tokenizer.normalizer = normalizers.Lowercase()
        self._tokenizer.pre_tokenizer = pre_tokenizers.Split(_WORD, behavior="removed", invert=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials and reserved places included."""
        return len(self._words)

    @property
    def token_ids(self) -> TokenIds:
        """The control tokens that the model puts around texts and images."""
        return TokenIds(bos=1, eos=2, boi=3, eoi=4)

    def encode(self, text: str) -> list[int]:
        """Ids of the words, without begin or end of text.

        Raises:
            DataError: A word is not in the vocabulary; the closest known ones are named.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if self._unknown_id in encoding.ids:
            # In the text's own spelling, since the error is for whoever wrote it.
            pairs = zip(encoding.ids, encoding.offsets, strict=True)
            raise DataError(self._unknown_words([text[a:b] for i, (a, b) in pairs if i == self._unknown_id]))
        return encoding.ids

    def decode(self, ids: Sequence[int]) -> str:
        """The words of the ids, separated by spaces; control tokens and padding are left out.

        Raises:
            DataError: An id is outside the vocabulary.
        """
        check_ids(ids, self.vocab_size)
        return " ".join(self._words[i] for i in ids if i > self.token_ids.eoi)

    def save(self, folder: Path) -> None:
        """Write its vocabulary as `words.json`."""
        vocab = {word: index for index, word in enumerate(self._words)}
        (folder / WORDS_FILE).write_text(json.dumps(vocab, indent=0) + "\n", encoding="utf-8")

    def _unknown_words(self, words: Sequence[str]) -> str:
        hints: list[str] = []
        for word in dict.fromkeys(words):
            near = difflib.get_close_matches(word.lower(), self._words, n=3)
            hints.append(f"{word!r} (closest: {', '.join(near) or 'none'})")
        return (
            f"words outside the small model's vocabulary: {'; '.join(hints)}. It knows the {self.vocab_size} "
            "words of Scenes only; rephrase the text in them"
        )


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Raises DataError if an id is outside the vocabulary."""
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise DataError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {vocab_size - 1}")
