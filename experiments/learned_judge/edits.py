"""Edits of a scene made by hand: right, half done, done to something else, and flawed in every way.

An edit is a content, such as the target or the same change of another thing, and perhaps a flaw, such as
noise, of a strength that is drawn too. Together they spread over all scores.

Legend: H W pixels. Images are float32 RGB in [-1, 1]; what flaws return may lie beyond.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter

from gvcot.data import scenes
from gvcot.data.scenes import generator
from gvcot.data.scenes.edit import Edit, Reference
from gvcot.data.scenes.levels import STANDARD
from gvcot.data.scenes.render import render_change
from gvcot.data.scenes.splits import Split
from gvcot.data.scenes.world import Scene
from gvcot.overlay import MAGENTA
from gvcot.types import EditSample

Array = np.ndarray

FLAWED = 0.5
"""Share of the edits that have a flaw."""

LATE = 0.5
"""Share of the flaws that come after the codec, as those of `rewards.planted` do. Others go through it: a
model can draw nothing else."""

PLANS = 12
"""Tries to plan another edit of a scene."""

RESTORING = ("repair", "watermark")
"""Tasks that spoil their scene when they plan, and so can't plan twice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A scene of which edits are made."""

    sample: EditSample
    symbols: generator.Problem
    """The same before it was drawn."""

    other: EditSample
    """Another scene."""


def problem(seed: int, index: int, split: Split = "train") -> Problem:
    """The scene at an index of a split, and the one after it (after the last one, the first)."""
    after = index + 1 if split == "train" else (index + 1) % scenes.length(split)
    return Problem(
        sample=scenes.generate(seed, index, split=split),
        symbols=generator.compose(seed, index, split=split),
        other=scenes.generate(seed, after, split=split),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """An edit before it goes through the codec."""

    kind: str
    """What it is, such as "blend" or "target+noise"."""

    image_HW3: Array
    """In [-1, 1]."""

    late_flaw: str | None
    """A flaw that comes after the codec."""


def draft(known: Problem, rng: np.random.Generator) -> Draft:
    """An edit of random content with a random flaw or none."""
    kind, image_HW3 = "", None
    while image_HW3 is None:  # targets and sources there always are
        kind = str(rng.choice(list(CONTENTS), p=list(CONTENT_SHARES.values())))
        image_HW3 = CONTENTS[kind](known, rng)
    if rng.random() >= FLAWED:
        return Draft(kind=kind, image_HW3=image_HW3, late_flaw=None)
    flaw = str(rng.choice(list(FLAWS)))
    if rng.random() < LATE:
        return Draft(kind=f"{kind}+{flaw}", image_HW3=image_HW3, late_flaw=flaw)
    return Draft(kind=f"{kind}+{flaw}", image_HW3=flawed(flaw, image_HW3, known, rng), late_flaw=None)


def flawed(flaw: str, image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    """The image with a flaw of random strength, in [-1, 1]."""
    return np.clip(FLAWS[flaw](image_HW3, known, rng), -1, 1).astype(np.float32)


# Contents: an image, or None where the scene has none of the kind.


def _target(known: Problem, rng: np.random.Generator) -> Array:
    return _unit(known.sample.target_HW3)


def _source(known: Problem, rng: np.random.Generator) -> Array:
    return _unit(known.sample.source_HW3)


def _blend(known: Problem, rng: np.random.Generator) -> Array:
    """Part of the way from source to target."""
    source_HW3, target_HW3 = _source(known, rng), _target(known, rng)
    return source_HW3 + np.float32(rng.uniform(0.1, 0.95)) * (target_HW3 - source_HW3)


def _wrong_thing(known: Problem, rng: np.random.Generator) -> Array | None:
    """The same change, if it can be, of something else that it could have been meant for."""
    symbols, scene = known.symbols, known.symbols.edit.before
    meant = {(r.entity.x, r.entity.y) for r in symbols.references}
    others = [e for e in symbols.edit.possible if (e.x, e.y) not in meant]
    others = others or [e for e in scene.entities if (e.x, e.y) not in meant]
    if not others:
        return None
    other = others[rng.integers(len(others))]
    if symbols.task.name in RESTORING:
        healed = replace(other, defect=None, stamped=False)
        changed = tuple(healed if entity == other else entity for entity in scene.entities)
        return _drawn(known, replace(scene, entities=changed))
    first = Reference(other, symbols.references[0].expression)
    edits = _plans(symbols, (first, *symbols.references[1:]), rng)
    best = next((edit for edit in edits if _asks_the_same(edit, symbols.edit)), None)
    return _drawn(known, (best or edits[-1]).after) if edits else None


def _wrong_change(known: Problem, rng: np.random.Generator) -> Array | None:
    """Another change of the right thing."""
    symbols = known.symbols
    if symbols.task.name in RESTORING:
        return None
    edits = _plans(symbols, symbols.references, rng)
    other = next((edit for edit in edits if not _asks_the_same(edit, symbols.edit)), None)
    return None if other is None else _drawn(known, other.after)


def _other_scene(known: Problem, rng: np.random.Generator) -> Array:
    return _unit(known.other.target_HW3)


CONTENTS: MappingProxyType[str, Callable[[Problem, np.random.Generator], Array | None]] = MappingProxyType(
    {
        "target": _target,
        "source": _source,
        "blend": _blend,
        "wrong_thing": _wrong_thing,
        "wrong_change": _wrong_change,
        "other_scene": _other_scene,
    }
)

CONTENT_SHARES = MappingProxyType(
    {
        "target": 0.22,
        "source": 0.06,
        "blend": 0.27,
        "wrong_thing": 0.25,
        "wrong_change": 0.16,
        "other_scene": 0.04,
    }
)


def _plans(
    symbols: generator.Problem, references: tuple[Reference, ...], rng: np.random.Generator
) -> list[Edit]:
    """Edits of the same task and scene."""
    scene = symbols.edit.before
    standing = {(e.x, e.y): e for e in scene.entities}  # the task may have changed them since
    references = tuple(replace(r, entity=standing[r.entity.x, r.entity.y]) for r in references)
    if any(r.entity.shape not in symbols.task.shapes for r in references):
        return []
    edits = [symbols.task.plan(scene, references, rng, STANDARD) for _ in range(PLANS)]
    return [edit for edit in edits if edit is not None and edit.before == scene]


def _asks_the_same(one: Edit, other: Edit) -> bool:
    """Whether two edits differ at most in what they are about."""
    things = ("x", "y")
    return one.wording == other.wording and all(
        value == other.slots[name] for name, value in one.slots.items() if name not in things
    )


def _drawn(known: Problem, after: Scene) -> Array | None:
    image_HW3 = render_change(known.sample.source_HW3, known.symbols.edit.before, after)
    return None if np.array_equal(image_HW3, known.sample.source_HW3) else _unit(image_HW3)


def _unit(image_HW3: Array | None) -> Array:
    assert image_HW3 is not None, "all samples of Scenes have a target"
    return image_HW3.astype(np.float32) / 127.5 - 1


# Flaws: each of a strength from hardly visible to ruinous.


def _noise(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    return image_HW3 + rng.normal(0, _log_uniform(rng, 0.02, 0.8), image_HW3.shape)


def _blur(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    reach = rng.uniform(0.3, 3.0)
    return gaussian_filter(image_HW3, (reach, reach, 0))


def _contrast(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    return image_HW3 * rng.uniform(1.1, 5.0)


def _wash(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    """Towards black, grey or white."""
    return image_HW3 + rng.uniform(0.05, 0.85) * (rng.choice([-1.0, 0.0, 1.0, 1.0]) - image_HW3)


def _tint(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    return image_HW3 + rng.uniform(0.05, 0.6) * rng.uniform(-1, 1, 3)


def _grid(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    """Points, rows or columns at regular distances."""
    out_HW3, period = image_HW3.copy(), rng.integers(2, 5)
    lines = [slice(None, None, period), slice(None)]
    across, down = [(0, 0), (0, 1), (1, 0)][rng.integers(3)]
    out_HW3[lines[across], lines[down]] += rng.choice([-1, 1, 1]) * _log_uniform(rng, 0.05, 0.8)
    return out_HW3


def _paint(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    """The paint of the reasoning image, on the right region or its mirror image."""
    mask_HW = known.sample.mask_HW if rng.random() < 0.6 else known.sample.mask_HW[:, ::-1]
    opacity = 0.6 if rng.random() < 0.5 else rng.uniform(0.1, 1.0)
    return np.where(mask_HW[..., None], image_HW3 + opacity * (np.array(MAGENTA) - image_HW3), image_HW3)


def _stains(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    out_HW3 = image_HW3.copy()
    for _ in range(rng.integers(1, 5)):
        (height, width), (y, x) = rng.integers(4, 24, 2), rng.integers(0, len(image_HW3) - 4, 2)
        patch_hw3 = out_HW3[y : y + height, x : x + width]
        patch_hw3 += rng.uniform(0.2, 1.0) * (rng.uniform(-1, 1, 3) - patch_hw3)
    return out_HW3


def _double(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    """Another scene shines through."""
    return image_HW3 + rng.uniform(0.05, 0.7) * (_unit(known.other.source_HW3) - image_HW3)


def _pieces(image_HW3: Array, known: Problem, rng: np.random.Generator) -> Array:
    """Pieces of the picture lie elsewhere, too."""
    out_HW3 = image_HW3.copy()
    for _ in range(rng.integers(1, 4)):
        (height, width), (y, x, v, u) = rng.integers(6, 24, 2), rng.integers(0, len(image_HW3) - 24, 4)
        out_HW3[y : y + height, x : x + width] = image_HW3[v : v + height, u : u + width]
    return out_HW3


FLAWS: MappingProxyType[str, Callable[[Array, Problem, np.random.Generator], Array]] = MappingProxyType(
    {
        "noise": _noise,
        "blur": _blur,
        "contrast": _contrast,
        "wash": _wash,
        "tint": _tint,
        "grid": _grid,
        "paint": _paint,
        "stains": _stains,
        "double": _double,
        "pieces": _pieces,
    }
)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
