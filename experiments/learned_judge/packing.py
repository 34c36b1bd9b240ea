"""Questions about edits as tokens: many of them in one row, which share what they have in common.

A row is a tree. Its root is what all questions about a scene begin with, the system prompt and the picture
before; its branches are the edits, each with its picture after; theirs are the questions. A token sees its
own segment up to itself, and all segments above. Each way down the tree is, to the token and position, what a
server makes of the messages of `rewards.judge.prompts`; a test holds the two together.

Legend: B rows, T tokens of a row, N edits, C pieces of an image, Q expressions. Places are indices into the
B * T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from experiments.learned_judge.tokenizer import (
    IMAGE,
    IMAGE_START,
    INSTRUCTION_END,
    INSTRUCTION_START,
    token_id,
)
from rewards.judge.prompts import PQ, SC, Aspect, Case, messages, question

TEXTS: dict[Aspect, str] = {"sc": SC, "pq": PQ}

ASPECTS: tuple[Aspect, ...] = ("sc", "pq")
"""What is asked of an edit, in the order of the columns of scores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is asked about one scene."""

    instruction: str

    num_edits: int
    """How many edits of it."""

    expressions: Sequence[str] = ()
    """Further expressions that mean something in the scene."""


@dataclass(kw_only=True, slots=True)
class Packed:
    """B rows, right-padded, and where in them things are."""

    token_BT: Tensor
    position_3BT: Tensor
    visible_B1TT: Tensor

    before_BC: Tensor
    """The pictures before."""

    after_NC: Tensor
    """The pictures after."""

    answer_N2: Tensor
    """Where SC and PQ are answered."""

    meant_N: Tensor
    """Where an edit's instruction ends."""

    row_N: Tensor
    """Its row."""

    expression_Q: Tensor
    """Where the further expressions end."""

    row_Q: Tensor
    """Their rows."""


class Packer:
    """Turns questions into rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, side: int) -> None:
        self._tokenizer = tokenizer
        self.side = side
        """Pieces of an image per side."""

        self.image = token_id(tokenizer, IMAGE)
        """The token that stands for a piece."""

        self._end = token_id(tokenizer, INSTRUCTION_END)
        self._cached = lru_cache(maxsize=None)(self.question)
        sc, pq = (self.question("", aspect) for aspect in ASPECTS)
        second = [i for i, token in enumerate(sc) if token == token_id(tokenizer, IMAGE_START)][1]
        parting = next(i for i, (a, b) in enumerate(zip(sc, pq, strict=False)) if a != b)
        self._root, self._edit = sc[:second], sc[second:parting]
        self._marks = sc[parting : sc.index(token_id(tokenizer, INSTRUCTION_START)) + 1]
        """What comes between the images and an instruction."""

    def question(self, instruction: str, aspect: Aspect) -> list[int]:
        """All tokens of one question, those of its images among them."""
        case = Case(sample_id="", task="", instruction=instruction, before=b"", after=b"", marked=None)
        asked = messages(question(case, aspect, TEXTS[aspect]), "digits")
        ids: Any = self._tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        return [token for one in ids for token in [one] * (self.side**2 if one == self.image else 1)]

    def __call__(self, scenes: Sequence[Asked]) -> Packed:
        """One row per scene."""
        rows = [self._row(asked) for asked in scenes]
        length = max(len(row.tokens) for row in rows)
        token_BT = torch.zeros(len(rows), length, dtype=torch.long)
        position_3BT = torch.zeros(3, len(rows), length, dtype=torch.long)
        visible_BTT = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
        for number, row in enumerate(rows):
            end = len(row.tokens)
            token_BT[number, :end] = torch.tensor(row.tokens)
            position_3BT[:, number, :end] = torch.tensor(row.positions).T
            visible_BTT[number, :end, :end] = row.visible()

        def places(name: str) -> Tensor:
            found = [torch.tensor(getattr(row, name)) + number * length for number, row in enumerate(rows)]
            return torch.cat(found).long()

        def rows_of(name: str) -> Tensor:
            counts = torch.tensor([len(getattr(row, name)) for row in rows])
            return torch.arange(len(rows)).repeat_interleave(counts)

        return Packed(
            token_BT=token_BT,
            position_3BT=position_3BT,
            visible_B1TT=visible_BTT[:, None],
            before_BC=places("before"),
            after_NC=places("after"),
            answer_N2=places("answers"),
            meant_N=places("meant"),
            row_N=rows_of("meant"),
            expression_Q=places("expressions"),
            row_Q=rows_of("expressions"),
        )

    def _row(self, asked: Asked) -> _Row:
        row = _Row(image=self.image, side=self.side)
        root = row.add(self._root)
        row.before.append(row.last_image())
        edits = []
        for _ in range(asked.num_edits):
            edits.append(row.add(self._edit, root))
            row.after.append(row.last_image())
            answers = []
            for aspect in ASPECTS:
                rest = self._cached(asked.instruction, aspect)[len(self._root) + len(self._edit) :]
                row.add(rest, edits[-1])
                answers.append(len(row.tokens) - 1)
                if aspect == "sc":
                    row.meant.append(len(row.tokens) - len(rest) + rest.index(self._end))
            row.answers.append(answers)
        for expression in asked.expressions:
            row.add([*self._marks, *self._tokenizer(expression).input_ids, self._end], edits[0])
            row.expressions.append(len(row.tokens) - 1)
        return row


@dataclass(kw_only=True, slots=True)
class _Row:
    """A tree of tokens that grows. Places are within the row."""

    image: int
    side: int
    tokens: list[int] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    """Of each token, the number of its segment."""

    positions: list[tuple[int, int, int]] = field(default_factory=list)
    """Of each token: time, height, width."""

    parents: list[int | None] = field(default_factory=list)
    """Of each segment."""

    nexts: list[int] = field(default_factory=list)
    """Of each segment, the position that follows it."""

    before: list[list[int]] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    meant: list[int] = field(default_factory=list)
    expressions: list[int] = field(default_factory=list)

    def add(self, tokens: Sequence[int], parent: int | None = None) -> int:
        """Append a segment; its number."""
        position = 0 if parent is None else self.nexts[parent]
        start = 0
        while start < len(tokens):
            if tokens[start] == self.image:
                grid = [(y, x) for y in range(self.side) for x in range(self.side)]
                self.positions += [(position, position + y, position + x) for y, x in grid]
                start, position = start + len(grid), position + self.side
            else:
                self.positions.append((position, position, position))
                start, position = start + 1, position + 1
        self.segments += [len(self.parents)] * len(tokens)
        self.tokens += tokens
        self.parents.append(parent)
        self.nexts.append(position)
        return len(self.parents) - 1

    def last_image(self) -> list[int]:
        """The places of the image that came last."""
        return [i for i, token in enumerate(self.tokens) if token == self.image][-(self.side**2) :]

    def visible(self) -> Tensor:
        """bool (T, T): what each token sees."""
        above = torch.eye(len(self.parents), dtype=torch.bool)
        for number, parent in enumerate(self.parents):
            if parent is not None:
                above[number] |= above[parent]
        segment_T = torch.tensor(self.segments)
        return above[segment_T[:, None], segment_T[None]].tril()
