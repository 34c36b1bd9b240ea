"""The large model's tokenizer: Qwen2's byte-level byte pairs, read from a checkpoint folder.

All of the work is done by `tokenizers`; where a folder has no `tokenizer.json`, transformers' Qwen2Tokenizer
puts the same together from `vocab.json`, `merges.txt` and `tokenizer_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from gvcot.errors import CheckpointError
from gvcot.model.config import TokenIds
from gvcot.model.tokenizer import check_ids

WHOLE = "tokenizer.json"
PARTS = ("vocab.json", "merges.txt", "tokenizer_config.json")
"""What stands in for `tokenizer.json`."""

FILES = (
    WHOLE,
    *PARTS,
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)
"""Kept when a model is saved, as far as a folder has them."""

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
"""Begin and end of text, begin and end of image."""


def has_bpe(folder: Path) -> bool:
    """Whether a folder holds this kind of tokenizer."""
    return (folder / WHOLE).is_file() or any((folder / name).is_file() for name in PARTS)


class BPETokenizer:
    """Qwen2's tokenizer, or one of another size with its rules.

    Control tokens are never read from text: an instruction that spells "<|im_end|>" is encoded letter by
    letter, so it cannot end its own segment. (BAGEL's own code would obey it.)

    Example:
        tokenizer = BPETokenizer(Path("BAGEL-7B-MoT"))
        tokenizer.token_ids.bos     # 151644
    """

    def __init__(self, folder: Path) -> None:
        """Args:
        folder: with `tokenizer.json`, or with `vocab.json`, `merges.txt` and `tokenizer_config.json`.

        Raises:
            CheckpointError: files are missing or unreadable, or control tokens are.
        """
        self._tokenizer = _read_whole(folder) if (folder / WHOLE).is_file() else _read_parts(folder)
        self._files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        ids = {token: self._tokenizer.token_to_id(token) for token in CONTROL_TOKENS}
        missing = [token for token, index in ids.items() if index is None]
        if missing:
            raise CheckpointError(
                f"the tokenizer in {folder} lacks the control tokens {missing}; use Qwen2.5's tokenizer "
                "files, as published with BAGEL"
            )
        bos, eos, boi, eoi = ids.values()
        self._token_ids = TokenIds(bos=bos, eos=eos, boi=boi, eoi=eoi)
        self._tokenizer.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """Ids from 0 to this one are known; the model may have rows for more."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def token_ids(self) -> TokenIds:
        """The control tokens that the model puts around texts and images."""
        return self._token_ids

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without begin or end of text."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; control tokens are left out.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        check_ids(ids, self.vocab_size)
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write the files that it was read from, byte for byte."""
        for name, content in self._files.items():
            (folder / name).write_bytes(content)


def _read_whole(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(folder / WHOLE))
    except Exception as error:  # noqa: BLE001 - `tokenizers` raises bare Exceptions
        raise CheckpointError(
            f"{folder / WHOLE} is not a tokenizer ({error}); restore the original file, or delete it if "
            f"{', '.join(PARTS)} are there"
        ) from None


def _read_parts(folder: Path) -> Tokenizer:
    missing = [name for name in PARTS if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} has a part of a tokenizer, but lacks {', '.join(missing)}; copy them from the "
            f"original, or its {WHOLE}"
        )
    from transformers import Qwen2Tokenizer

    try:
        read = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"the files {', '.join(PARTS)} in {folder} are no tokenizer ({error}); restore the originals"
        ) from error
    return read.backend_tokenizer
