"""Samples as a pure function of (seed, split, index)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gvcot.data.scenes.edit import Edit, Reference, Task
from gvcot.data.scenes.layout import CROWDED, sample_scene
from gvcot.data.scenes.refer import refer
from gvcot.data.scenes.render import Array, Box, bounds, change_mask, render, render_change, silhouette
from gvcot.data.scenes.splits import SPLIT_TABLE, Split, is_held_out
from gvcot.data.scenes.tasks import TASK_TABLE
from gvcot.data.scenes.world import GRID, WORLD, Entity
from gvcot.errors import DataError, closest
from gvcot.types import EditSample, Referral, Region

REFERRALS: tuple[Referral, ...] = ("spatial", "property", "knowledge")
TASKS = tuple(TASK_TABLE)
SPLITS: tuple[Split, ...] = tuple(SPLIT_TABLE)

VERSION = 2
"""Goes up whenever the same arguments give another sample, so that stored encodings are made anew."""

MAX_ATTEMPTS = 20_000
"""Scenes drawn for one sample before giving up; the benchmark needs 15 on average."""

BOX_MARGIN = 1.0
"""World units between an inserted thing and the rectangle that marks its place."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A sample before it is drawn."""

    task: Task
    referral: Referral
    reference: Reference
    edit: Edit


def generate(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    size: int = 64,
    tasks: Sequence[str] | None = None,
    entities: tuple[int, int] = CROWDED,
) -> EditSample:
    """The sample at `index` of a split's stream: the same for the same arguments, always and everywhere.

    Args:
        seed: Not negative; other seeds are other streams.
        index: Below the split's length; the training split has no end.
        split: A name of `SPLITS`.
        size: Side of the image in pixels, a multiple of 16 and at least 64. Scenes scale with it, so the
            same index is the same scene at any size.
        tasks: Names of `TASKS` to draw from; all by default.
        entities: Fewest and most things in a scene, within 2 to 16.

    Raises:
        DataError: An argument is out of its range or a name is unknown.
    """
    if size < WORLD or size % 16:
        raise DataError(f"image size {size} does not fit Scenes; expected a multiple of 16, at least 64")
    problem = compose(seed, index, split=split, tasks=tasks, entities=entities)
    suffix = "" if tasks is None else "/" + "+".join(tasks)
    suffix += "" if entities == CROWDED else f"/{entities[0]}-{entities[1]}"
    return _render(problem, size, f"scenes/{split}/{seed}/{index}{suffix}")


def compose(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    tasks: Sequence[str] | None = None,
    entities: tuple[int, int] = CROWDED,
) -> Problem:
    """What `generate` renders, as symbols; same arguments, same errors."""
    if not 2 <= entities[0] <= entities[1] <= GRID * GRID:
        raise DataError(
            f"entities {entities} do not fit a scene; expected (fewest, most) within 2 to {GRID * GRID}"
        )
    chosen = _check(seed, index, split, tasks)
    spec = SPLIT_TABLE[split]
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, spec.stream, index])))
    # In the benchmark tasks and kinds of referral take turns, so its groups are equal.
    turn = index if spec.held_out else int(rng.random() * (1 << 30))
    referral = REFERRALS[turn % len(REFERRALS)]
    task = chosen[turn // len(REFERRALS) % len(chosen)]
    for _ in range(MAX_ATTEMPTS):
        scene = sample_scene(rng, entities)
        target = int(rng.random() * len(scene.entities))
        expression = refer(scene, target, referral, rng)
        entity = scene.entities[target]
        if expression is None or is_held_out(entity, expression) != spec.held_out:
            continue
        reference = Reference(entity, expression)
        edit = task.plan(scene, reference, rng)
        if edit is not None:
            return Problem(task, referral, reference, edit)
    raise AssertionError(f"no scene suits task {task.name!r} and referral {referral!r}")


def length(split: Split) -> int:
    """Number of samples of a bounded split.

    Raises:
        DataError: An unknown split, or the unbounded training split.
    """
    if split not in SPLIT_TABLE:
        raise DataError(f"unknown split {split!r} of Scenes; {closest(split, SPLITS)}")
    bound = SPLIT_TABLE[split].length
    if bound is None:
        raise DataError(f"split {split!r} of Scenes has no end; say how many samples, or use val or bench")
    return bound


def samples(
    split: Split, indices: Iterable[int], *, seed: int = 0, size: int = 64, tasks: Sequence[str] | None = None
) -> list[EditSample]:
    """Several samples of one split, in the order of `indices`; see `generate`."""
    return [generate(seed, index, split=split, size=size, tasks=tasks) for index in indices]


def _check(seed: int, index: int, split: Split, tasks: Sequence[str] | None) -> list[Task]:
    if split not in SPLIT_TABLE:
        raise DataError(f"unknown split {split!r} of Scenes; {closest(split, SPLITS)}")
    length = SPLIT_TABLE[split].length
    if index < 0 or (length is not None and index >= length):
        limit = "any index from 0" if length is None else f"0 <= index < {length}"
        raise DataError(f"index {index} is outside split {split!r} of Scenes; expected {limit}")
    if seed < 0:
        raise DataError(f"seed {seed} is negative; expected 0 or more")
    names = TASKS if tasks is None else tasks
    unknown = [name for name in names if name not in TASK_TABLE]
    if unknown:
        raise DataError(f"unknown task {unknown[0]!r} of Scenes; {closest(unknown[0], TASKS)}")
    if not names:
        raise DataError(f"no task given; expected some of: {', '.join(TASKS)}")
    return [TASK_TABLE[name] for name in names]


def _rectangle(entity: Entity, size: int) -> Array:
    """bool (H, W): a filled rectangle around the entity."""
    scale = size / WORLD
    half = entity.radius + BOX_MARGIN
    x0, y0 = (max(0, round((c - half) * scale)) for c in (entity.x, entity.y))
    x1, y1 = (min(size, round((c + half) * scale)) for c in (entity.x, entity.y))
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


def _render(problem: Problem, size: int, sample_id: str) -> EditSample:
    task, edit = problem.task, problem.edit
    source_HW3 = render(edit.before, size)
    outline = _rectangle if task.boxed else silhouette
    masks = [outline(entity, size) for entity in edit.marked]
    boxes: list[Box] = [bounds(mask_HW) for mask_HW in masks]
    return EditSample(
        sample_id=sample_id,
        source_HW3=source_HW3,
        instruction=edit.instruction,
        task=task.name,
        referral=problem.referral,
        mask_HW=np.logical_or.reduce(masks),
        regions=tuple(Region(box=b, mask_HW=m) for b, m in zip(boxes, masks, strict=True)),
        paint="box" if task.boxed else "mask",
        region_caption=edit.caption,
        target_HW3=render_change(source_HW3, edit.before, edit.after),
        change_mask_HW=change_mask(edit.before, edit.after, size),
    )
