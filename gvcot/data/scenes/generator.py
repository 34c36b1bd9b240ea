"""Samples as a pure function of (seed, split, index) and the world's settings."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import numpy as np
from scipy import ndimage

from gvcot.data.scenes.edit import Edit, Reference, Task
from gvcot.data.scenes.expressions import involved
from gvcot.data.scenes.layout import between, pick, sample_scene, shuffled
from gvcot.data.scenes.levels import DEFAULT, LEVELS, STANDARD, Level, WorldConfig
from gvcot.data.scenes.refer import full_name, name, refer
from gvcot.data.scenes.render import (
    Array,
    area,
    change_mask,
    render,
    render_change,
    silhouette,
    stamp_mask,
    visible_change,
    wall_mask,
)
from gvcot.data.scenes.shortcuts import solved_by
from gvcot.data.scenes.splits import SPLIT_TABLE, Split, is_held_out
from gvcot.data.scenes.tasks import SHARES, TASK_TABLE
from gvcot.data.scenes.world import Entity, Scene
from gvcot.errors import DataError, closest
from gvcot.prompts import point_words
from gvcot.types import EditSample, Referral, Region

REFERRALS: tuple[Referral, ...] = ("spatial", "property", "knowledge")
TASKS = tuple(TASK_TABLE)
SPLITS: tuple[Split, ...] = tuple(SPLIT_TABLE)

VERSION = 3
"""Goes up whenever the same arguments give another sample, so that stored encodings are made anew."""

MAX_ATTEMPTS = 20_000
"""Scenes drawn for one sample before giving up."""

MIN_VISIBLE = 6
"""Pixels that an edit must visibly change, at the smallest picture size."""

BOX_MARGIN = 1.0
"""World units between an inserted thing and the rectangle that marks its place."""

POINTING = 1
"""Purpose of the random numbers that pointers are drawn with."""

NUM_POINTERS = 6
"""Most referring expressions of a scene beside the instruction's own."""

FULL_NAMES = 0.5
"""Share of them that say all there is to say: to match several attributes is learned hundreds of steps
before matching one, which it makes easy."""

DISTRACTORS = ("there is {y} . {instruction}", "{y} is here . {instruction}", "i see {y} . {instruction}")
"""Idle words before an instruction, about something that has no part in it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A sample before it is drawn."""

    task: Task
    referral: Referral
    references: tuple[Reference, ...]
    edit: Edit
    instruction: str
    """In words of the vocabulary."""


def generate(
    seed: int,
    index: int,
    *,
    split: Split = "train",
    size: int | None = None,
    world: WorldConfig = DEFAULT,
) -> EditSample:
    """The sample at `index` of a split's stream: the same for the same arguments, always and everywhere.

    Args:
        seed: Not negative; other seeds are other streams.
        index: Below the split's length; the training split has no end.
        split: A name of `SPLITS`.
        size: Side of the image in pixels, a multiple of 16 and at least 16 a cell, which is the default.
            Scenes scale with it, so the same index is the same scene at any size.
        world: How hard the world is, and which tasks there are. In the benchmark they take turns, elsewhere
            they are drawn in the proportions of `tasks.SHARES`.

    Raises:
        DataError: An argument is out of its range or a name is unknown.
    """
    level = world.resolve()
    size = level.size if size is None else size
    if size < level.size or size % 16:
        raise DataError(
            f"image size {size} does not fit a grid of {level.grid} x {level.grid} cells; expected a "
            f"multiple of 16, at least {level.size}"
        )
    problem = compose(seed, index, split=split, world=world)
    drawn = _pointers(problem.edit.before, level, size, _rng(seed, split, index, POINTING))
    pointers = tuple(islice(drawn, NUM_POINTERS))
    suffix = "" if world.tasks is None else "/" + "+".join(world.tasks)
    return _render(problem, pointers, size, f"scenes/{split}/{seed}/{index}{suffix}{_level_suffix(level)}")


def compose(seed: int, index: int, *, split: Split = "train", world: WorldConfig = DEFAULT) -> Problem:
    """What `generate` renders, as symbols; same arguments, same errors."""
    level = world.resolve()
    chosen = _check(seed, index, split, world.tasks)
    spec = SPLIT_TABLE[split]
    rng = _rng(seed, split, index)
    if spec.held_out:
        # Tasks and kinds of referral take turns, so the benchmark's groups are equal.
        referral = REFERRALS[index % len(REFERRALS)]
        task = chosen[index // len(REFERRALS) % len(chosen)]
    else:
        referral = pick(rng, REFERRALS)
        task = _draw_task(chosen, rng)
    hops = between(rng, level.hops)
    named = level.full_names > 0 and not spec.held_out and rng.random() < level.full_names
    if named:
        referral = "property"
    for _ in range(MAX_ATTEMPTS):
        problem = _attempt(rng, task, referral, hops, level, named=named, bench=spec.held_out)
        if problem is not None:
            return problem
    raise DataError(
        f"no scene suits task {task.name!r} and referral {referral!r} at {level}: loosen the level's settings"
    )


def _rng(seed: int, split: Split, index: int, *purpose: int) -> np.random.Generator:
    """Random numbers of one sample; those of other purposes leave its own as they are."""
    entropy = [int(seed), SPLIT_TABLE[split].stream, int(index), *purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _draw_task(chosen: Sequence[Task], rng: np.random.Generator) -> Task:
    ends = list(accumulate(SHARES[task.name] for task in chosen))
    drawn = rng.random() * ends[-1]
    return next(task for task, end in zip(chosen, ends, strict=True) if drawn < end)


def _attempt(
    rng: np.random.Generator,
    task: Task,
    referral: Referral,
    hops: int,
    level: Level,
    *,
    named: bool,
    bench: bool,
) -> Problem | None:
    """One scene and an edit of it, or None where they don't fit together."""
    scene = sample_scene(rng, level, task.shapes)
    if scene is None or not _area_fits(scene.entities[0], level):
        return None
    references = _references(rng, scene, task.num_references, referral, hops, named=named)
    if references is None:
        return None
    held_out = [is_held_out(r.entity, r.expression) for r in references]
    if held_out[0] != bench or (not bench and any(held_out)):
        return None
    edit = task.plan(scene, references, rng, level)
    if edit is None or visible_change(edit.before, edit.after, level.size) < MIN_VISIBLE:
        return None
    found = {
        (e.x, e.y): e for e in edit.before.entities
    }  # a task may have spoiled them; they stand where they stood
    referents = tuple(found[r.entity.x, r.entity.y] for r in references)
    if level.look_alikes[1] > 0:
        solved = solved_by(edit, referents)
        if solved == "only one" or (bench and solved):
            return None
    instruction = say(rng, edit, level, bench=bench)
    if rng.random() < level.distractors:
        idle = _idle(rng, scene, {i for r in references for i in involved(r.expression, scene)})
        if idle is None:
            return None
        instruction = pick(rng, DISTRACTORS).format(y=idle, instruction=instruction)
    return Problem(task, referral, references, edit, instruction)


def _area_fits(entity: Entity, level: Level) -> bool:
    return level.area[0] <= area(entity) / level.size**2 <= level.area[1]


def _references(
    rng: np.random.Generator, scene: Scene, count: int, referral: Referral, hops: int, *, named: bool
) -> tuple[Reference, ...] | None:
    """References to the first thing and to `count` - 1 others; all by their full names, if `named`."""
    targets = [0]
    while len(targets) < count:
        if len(scene.entities) < count:
            return None
        other = int(rng.random() * len(scene.entities))
        targets += [] if other in targets else [other]
    references = []
    for target in targets:
        if named:
            expression = full_name(scene, target)
        else:
            expression = refer(scene, target, referral, hops if target == 0 else 1, rng)
        if expression is None:
            return None
        references.append(Reference(scene.entities[target], expression))
    return tuple(references)


def say(rng: np.random.Generator, edit: Edit, level: Level, *, bench: bool) -> str:
    """One of the edit's wordings with its slots filled in."""
    wordings = edit.wording.bench if bench else edit.wording.train[: level.paraphrases]
    return re.sub(r"\ba orange\b", "an orange", pick(rng, wordings).format(**edit.slots))


def _idle(rng: np.random.Generator, scene: Scene, named: set[int]) -> str | None:
    """Words for something that the instruction does not name."""
    others = [i for i in range(len(scene.entities)) if i not in named]
    found = name(scene, pick(rng, others), rng) if others else None
    return None if found is None else found.to_text()


def length(split: Split) -> int:
    """Number of samples of a bounded split.

    Raises:
        DataError: An unknown split, or the unbounded training split.
    """
    if split not in SPLIT_TABLE:
        raise DataError(f"unknown split {split!r} of Scenes; {closest(split, SPLITS)}")
    bound = SPLIT_TABLE[split].length
    if bound is None:
        raise DataError(f"split {split!r} of Scenes has no end; say how many samples, or take another split")
    return bound


def samples(
    split: Split,
    indices: Iterable[int],
    *,
    seed: int = 0,
    size: int | None = None,
    world: WorldConfig = DEFAULT,
) -> list[EditSample]:
    """Several samples of one split, in the order of `indices`; see `generate`."""
    return [generate(seed, index, split=split, size=size, world=world) for index in indices]


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


def _level_suffix(level: Level) -> str:
    if level == STANDARD:
        return ""
    known = [name for name, other in LEVELS.items() if other == level]
    return "/" + (known[0] if known else hashlib.blake2b(repr(level).encode(), digest_size=4).hexdigest())


def _rectangle(entity: Entity, side: float, size: int) -> Array:
    """bool (H, W): a filled rectangle around the entity."""
    scale = size / side
    half = entity.radius + BOX_MARGIN
    x0, y0 = (max(0, round((c - half) * scale)) for c in (entity.x, entity.y))
    x1, y1 = (min(size, round((c + half) * scale)) for c in (entity.x, entity.y))
    mask_HW = np.zeros((size, size), bool)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


def _regions(edit: Edit, things: Sequence[Array], size: int) -> list[Array]:
    """bool (H, W) of each thing that is marked; `things`: the silhouettes of everything in `before`."""
    scene = edit.before
    if edit.outline == "thing":
        return [things[scene.entities.index(entity)] for entity in edit.marked]
    if edit.outline == "wall":
        things_HW = np.logical_or.reduce(things)
        walls = sorted({scene.backdrop.wall_behind(entity) for entity in edit.marked})
        return [wall_mask(scene.backdrop, wall, scene.side, size) & ~things_HW for wall in walls]
    outline = {"box": _rectangle, "stamp": stamp_mask}[edit.outline]
    return [outline(entity, scene.side, size) for entity in edit.marked]


def _boxed(masks: Sequence[Array]) -> tuple[Region, ...]:
    """Masks that don't overlap, none of them empty, with their tight boxes."""
    label_HW = np.zeros(masks[0].shape, np.int32)
    for label, mask_HW in enumerate(masks, 1):
        label_HW[mask_HW] = label
    found = zip(ndimage.find_objects(label_HW), masks, strict=True)
    return tuple(Region(box=(x.start, y.start, x.stop, y.stop), mask_HW=mask) for (y, x), mask in found)


def _inventory(scene: Scene, size: int) -> str:
    """Everything that stands in the scene, row by row, each after the place of its centre."""
    ordered = sorted(scene.entities, key=lambda e: min((row, column) for column, row in e.cells))
    return " ".join(f"{_place(entity, scene, size)} {entity.describe()}" for entity in ordered)


def _place(entity: Entity, scene: Scene, size: int) -> str:
    """Where the thing's centre is, in coordinate words."""
    scale = size / scene.side
    return point_words((entity.x * scale, entity.y * scale), (size, size))


def _pointers(scene: Scene, level: Level, size: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Full names and other expressions for things in random order, each with the place of what it means.

    Nothing comes twice before everything has had its turn. Compositions of the benchmark are left out, and so
    are things for which no expression is found.
    """
    ids = range(len(scene.entities))
    for target in (*shuffled(rng, ids), *shuffled(rng, ids)):
        if rng.random() < FULL_NAMES:
            found = full_name(scene, target)
        else:
            found = refer(scene, target, pick(rng, REFERRALS), between(rng, level.hops), rng)
        if found is not None and not is_held_out(scene.entities[target], found):
            yield found.to_text(), _place(scene.entities[target], scene, size)


def _render(problem: Problem, pointers: tuple[tuple[str, str], ...], size: int, sample_id: str) -> EditSample:
    edit, before = problem.edit, problem.edit.before
    source_HW3 = render(before, size)
    things = [silhouette(entity, before.side, size) for entity in before.entities]
    # The place of an insertion is no thing, nor is a wall: nothing that stands in the source is meant.
    meant = edit.marked if edit.outline in ("thing", "stamp") else ()
    referents = tuple(before.entities.index(entity) for entity in meant)
    masks = _regions(edit, things, size)
    return EditSample(
        sample_id=sample_id,
        source_HW3=source_HW3,
        instruction=problem.instruction,
        task=problem.task.name,
        referral=problem.referral,
        mask_HW=np.logical_or.reduce(masks),
        regions=_boxed(masks),
        paint="box" if edit.outline == "box" else "mask",
        region_caption=edit.caption,
        scene_caption=_inventory(before, size),
        pointers=pointers,
        target_HW3=render_change(source_HW3, before, edit.after),
        change_mask_HW=change_mask(before, edit.after, size),
        things=_boxed(things),
        referents=referents,
    )
