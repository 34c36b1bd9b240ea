"""Samples are pure functions of their arguments, and their images and masks are exact."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from gvcot.data import scenes
from gvcot.data.scenes.edit import Wording
from gvcot.data.scenes.generator import compose, say
from gvcot.data.scenes.render import coverage, render, silhouette
from gvcot.data.scenes.world import Entity
from gvcot.errors import DataError
from gvcot.types import EditSample

GOLDEN_TRAIN = [
    "paint the wall behind the medium filled circle mist",
    "add a cyan hat to the orange person",
    "give the blue person cyan trousers",
]
GOLDEN_BENCH = [
    "set a large black circle right of the topmost dotted diamond",
    "set a medium green triangle right of the large person",
    "set a medium cyan dotted lamp left of the thing with a head",
]
GOLDEN_DIGESTS: dict[tuple[str, scenes.Split], str] = {
    ("easy", "train"): "345f4021ba79",
    ("easy", "val"): "9e93ea2eb772",
    ("easy", "bench"): "6effdd675b88",
    ("standard", "train"): "97e15cc92ba9",
    ("standard", "val"): "d134f692df68",
    ("standard", "bench"): "71e697dbdce9",
    ("hard", "train"): "4c5032c70256",
    ("hard", "val"): "d44ad9838fe6",
    ("hard", "bench"): "a7ab79ab90f9",
}

SQUARE = np.ones((3, 3))


def as_tuple(sample: EditSample) -> tuple[object, ...]:
    arrays = (sample.source_HW3, sample.target_HW3, sample.mask_HW, sample.change_mask_HW)
    regions = tuple((region.box, region.mask_HW.tobytes()) for region in sample.regions)
    words = (sample.sample_id, sample.instruction, sample.task, sample.referral, sample.region_caption)
    return *words, regions, *(a.tobytes() for a in arrays if a is not None)


def digest_of_words(level: str, split: scenes.Split) -> str:
    world = scenes.WorldConfig(level=level)
    words = [compose(3, index, split=split, world=world).instruction for index in range(24)]
    return hashlib.blake2b("\n".join(words).encode(), digest_size=6).hexdigest()


def test_known_samples_have_not_changed() -> None:
    # Whoever changes these raises scenes.VERSION, which makes stored encodings anew.
    assert scenes.VERSION == 3
    assert [scenes.generate(0, i).instruction for i in (0, 1, 2)] == GOLDEN_TRAIN
    assert [scenes.generate(0, i, split="bench").instruction for i in (0, 1, 2)] == GOLDEN_BENCH


@pytest.mark.parametrize(("level", "split"), GOLDEN_DIGESTS)
def test_known_streams_have_not_changed(level: str, split: scenes.Split) -> None:
    assert digest_of_words(level, split) == GOLDEN_DIGESTS[level, split]


def test_samples_depend_on_nothing_but_their_arguments() -> None:
    first = [as_tuple(s) for s in scenes.samples("train", range(20), seed=3)]
    np.random.seed(1)
    random.seed(1)
    backwards = [as_tuple(s) for s in scenes.samples("train", reversed(range(20)), seed=3)]
    assert first == backwards[::-1]
    assert len(set(first)) == 20
    assert first != [as_tuple(s) for s in scenes.samples("train", range(20), seed=4)]
    others = [[as_tuple(s)[5:] for s in scenes.samples(o, range(20), seed=3)] for o in ("val", "test")]
    assert [s[5:] for s in first] not in others
    assert others[0] != others[1]


def digest(samples: Iterable[EditSample]) -> str:
    return hashlib.blake2b(b"".join(repr(as_tuple(s)).encode() for s in samples)).hexdigest()


CHOSEN: list[tuple[str, scenes.Split, int]] = [
    ("standard", "train", 30),
    ("hard", "train", 8),
    ("standard", "bench", 8),
]

SCRIPT = """
import hashlib, sys
from gvcot.data import scenes
found = hashlib.blake2b()
for level, split, count in {chosen}:
    for s in scenes.samples(split, range(count), world=scenes.WorldConfig(level=level)):
        arrays = (s.source_HW3, s.target_HW3, s.mask_HW, s.change_mask_HW)
        regions = tuple((region.box, region.mask_HW.tobytes()) for region in s.regions)
        words = (s.sample_id, s.instruction, s.task, s.referral, s.region_caption)
        found.update(repr((*words, regions, *(a.tobytes() for a in arrays))).encode())
print(found.hexdigest())
"""


def chosen_here() -> list[EditSample]:
    return [
        sample
        for level, split, count in CHOSEN
        for sample in scenes.samples(split, range(count), world=scenes.WorldConfig(level=level))
    ]


@pytest.mark.parametrize("hash_seed", ["1", "4321"])
def test_another_process_with_another_hash_seed_makes_the_same_samples(hash_seed: str) -> None:
    script = SCRIPT.replace("{chosen}", repr(CHOSEN))
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest(chosen_here())


def test_a_spawned_worker_makes_the_same_samples() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(scenes.samples, ("train", range(12)), {"seed": 5})
    assert digest(there) == digest(scenes.samples("train", range(12), seed=5))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint32])
@pytest.mark.parametrize("split", scenes.SPLITS)
def test_integers_of_numpy_are_integers(kind: type[np.integer], split: scenes.Split) -> None:
    for index in (0, 7, 100):
        numbers = kind(3), kind(index)
        plain, numpys = (scenes.generate(*pair, split=split) for pair in ((3, index), numbers))  # pyright: ignore[reportArgumentType]
        assert as_tuple(plain) == as_tuple(numpys)


def grown(mask_HW: NDArray[np.bool_], times: int = 1) -> NDArray[np.bool_]:
    return np.asarray(ndimage.binary_dilation(mask_HW, SQUARE, times), bool)


def num_parts(mask_HW: NDArray[np.bool_]) -> int:
    """Connected parts; pixels that touch at a corner are connected."""
    parts_HW = np.zeros(mask_HW.shape, np.int32)
    ndimage.label(mask_HW, SQUARE, parts_HW)
    return int(parts_HW.max())


def check_sound(sample: EditSample, level: str) -> None:
    size = 80 if level == "hard" else 64
    target_HW3, change_HW = sample.target_HW3, sample.change_mask_HW
    assert target_HW3 is not None
    assert change_HW is not None
    assert sample.source_HW3.shape == target_HW3.shape == (size, size, 3)
    assert sample.source_HW3.dtype == target_HW3.dtype == np.uint8
    assert sample.mask_HW.dtype == change_HW.dtype == bool
    assert sample.mask_HW.shape == change_HW.shape == (size, size)
    assert sample.task in scenes.TASKS
    assert sample.referral in scenes.REFERRALS
    difference_HW = (sample.source_HW3 != target_HW3).any(-1)
    assert difference_HW.sum() > 5
    # One pixel wider than what differs, so that a decoder's blur at the edge is no breach.
    assert not (grown(difference_HW) & ~change_HW).any()
    assert (np.logical_or.reduce([r.mask_HW for r in sample.regions]) == sample.mask_HW).all()
    assert len(sample.regions) == (2 if sample.task == "multi_subject" else 1)
    for region in sample.regions:
        x0, y0, x1, y1 = region.box
        inside_HW = region.mask_HW[y0:y1, x0:x1]
        assert inside_HW.sum() == region.mask_HW.sum() > 20
        assert inside_HW[[0, -1]].any(1).all()
        assert inside_HW[:, [0, -1]].any(0).all()
        if sample.task != "background":
            assert num_parts(region.mask_HW) == 1
    assert (sample.paint == "box") == (sample.task == "insertion")
    if sample.paint == "box":
        x0, y0, x1, y1 = sample.regions[0].box
        assert sample.mask_HW[y0:y1, x0:x1].all()
        assert not (change_HW & ~grown(sample.mask_HW, 2)).any()
    elif sample.task == "extraction":
        assert not difference_HW[sample.mask_HW].any()
    elif sample.task in ("removal", "color", "material", "repair", "structure", "multi_subject"):
        # Nothing but what is painted changes, and the faint edge around it.
        assert not (difference_HW & ~grown(sample.mask_HW, 2)).any()


@settings(max_examples=60)
@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from(("easy", "standard", "hard")))
def test_every_train_sample_is_sound(seed: int, index: int, level: str) -> None:
    check_sound(scenes.generate(seed, index, world=scenes.WorldConfig(level=level)), level)


@pytest.mark.parametrize("task", scenes.TASKS)
def test_samples_of_every_task_are_sound(task: str) -> None:
    for level, count in (("easy", 4), ("standard", 16), ("hard", 6)):
        world = scenes.WorldConfig(level=level, tasks=(task,))
        for sample in scenes.samples("train", range(count), world=world):
            check_sound(sample, level)


@pytest.mark.parametrize("task", scenes.TASKS)
def test_change_mask_is_no_wider_than_the_things_that_change(task: str) -> None:
    world = scenes.WorldConfig(tasks=(task,))
    for index in range(8):
        sample, edit = scenes.generate(1, index, world=world), compose(1, index, world=world).edit
        assert sample.change_mask_HW is not None
        room_HW = np.zeros((64, 64), bool)
        for entity in set(edit.before.entities) ^ set(edit.after.entities):
            room_HW |= silhouette(entity, 64.0, 64)
            room_HW |= cells_HW(entity, entity, 4, 64) & (entity.stamped | (entity.style != "flat"))
        if task == "background":
            assert (sample.change_mask_HW & sample.mask_HW == sample.mask_HW).all()
            room_HW |= grown(sample.mask_HW, 32)
        assert not (sample.change_mask_HW & ~grown(room_HW, 4)).any()


def test_removal_and_extraction_show_the_background() -> None:
    for task in ("removal", "extraction"):
        for index in range(12):
            world = scenes.WorldConfig(tasks=(task,))
            sample, edit = scenes.generate(0, index, world=world), compose(0, index, world=world).edit
            gone_HW = np.zeros((64, 64), bool)
            for entity in set(edit.before.entities) - set(edit.after.entities):
                gone_HW |= silhouette(entity, 64.0, 64)
            assert sample.target_HW3 is not None
            for row_W3, gone_W in zip(sample.target_HW3, gone_HW, strict=True):
                assert len(np.unique(row_W3[gone_W], axis=0)) <= 1  # the wall is one colour in every row


def cells_HW(entity: Entity, before: Entity, grid: int, size: int) -> NDArray[np.bool_]:
    """Where a thing may be: its cell, or the block of four that a huge one has, or had before it shrank."""
    cell, mask_HW = size // grid, np.zeros((size, size), bool)
    if "huge" in (entity.size, before.size):
        x, y = (round(c / 16) * cell for c in (entity.x, entity.y))
        mask_HW[y - cell : y + cell, x - cell : x + cell] = True
    else:
        x, y = (int(c // 16) * cell for c in (entity.x, entity.y))
        mask_HW[y : y + cell, x : x + cell] = True
    return mask_HW


def check_apart(level: str, task: str | None, index: int, size: int) -> None:
    world = scenes.WorldConfig(level=level, tasks=None if task is None else (task,))
    edit = compose(9, index, world=world).edit
    old = {(entity.x, entity.y): entity for entity in edit.before.entities}
    for scene in (edit.before, edit.after):
        covered_HW, taken_HW = np.zeros((size, size)), np.zeros((size, size), int)
        for entity in scene.entities:
            (x0, y0, x1, y1), alpha_hw = coverage(entity, scene.side, size)
            alpha_HW = np.zeros((size, size))
            alpha_HW[y0:y1, x0:x1] = alpha_hw
            own_HW = cells_HW(entity, old.get((entity.x, entity.y), entity), scene.grid, size)
            assert alpha_HW[~own_HW].max() == 0, entity
            covered_HW += alpha_HW
            taken_HW += own_HW
        assert covered_HW.max() <= 1 + 1e-6
        assert taken_HW.max() == 1


@pytest.mark.parametrize(
    ("level", "size"), [("standard", 64), ("standard", 80), ("standard", 128), ("hard", 80), ("hard", 160)]
)
def test_things_stay_in_their_cells_and_never_overlap(level: str, size: int) -> None:
    for index in range(25 if level == "standard" else 10):
        check_apart(level, None, index, size)


@pytest.mark.parametrize("task", ["insertion", "movement", "size", "style", "watermark", "state"])
def test_nor_do_they_after_an_edit_that_moves_or_spreads_them(task: str) -> None:
    for index in range(20):
        check_apart("standard", task, index, 64)
    for index in range(8):
        check_apart("hard", task, index, 80)


def test_other_image_sizes_show_the_same_scene() -> None:
    for index in (0, 4, 9):
        small, large = scenes.generate(0, index), scenes.generate(0, index, size=128)
        assert large.source_HW3.shape == (128, 128, 3)
        assert large.instruction == small.instruction
        halved = large.source_HW3.reshape(64, 2, 64, 2, 3).mean((1, 3))
        assert np.abs(halved - small.source_HW3).mean() < 2.5
        assert large.mask_HW[::2, ::2].sum() == pytest.approx(small.mask_HW.sum(), rel=0.15)


def test_target_is_what_rendering_the_edited_scene_from_nothing_gives() -> None:
    for index in range(80):
        sample, edit = scenes.generate(5, index), compose(5, index).edit
        assert (sample.source_HW3 == render(edit.before, 64)).all()
        assert (sample.target_HW3 == render(edit.after, 64)).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "bensh"}, "did you mean 'bench'"),
        ({"world": scenes.WorldConfig(tasks=("colour",))}, "did you mean 'color'"),
        ({"world": scenes.WorldConfig(tasks=())}, "no task given"),
        ({"split": "val", "index": 512}, "0 <= index < 512"),
        ({"split": "bench", "index": 590}, "0 <= index < 590"),
        ({"index": -1}, "any index from 0"),
        ({"seed": -1}, "0 or more"),
        ({"size": 60}, "multiple of 16"),
        ({"size": 48}, "at least 64"),
        ({"size": 64, "world": scenes.WorldConfig(level="hard")}, "at least 80"),
    ],
)
def test_bad_arguments_say_what_would_be_right(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        scenes.generate(**{"seed": 0, "index": 0, **arguments})  # pyright: ignore[reportArgumentType]


def test_the_training_split_has_no_length() -> None:
    assert [scenes.length(split) for split in ("val", "test", "bench")] == [512, 4096, 590]
    with pytest.raises(DataError, match="has no end"):
        scenes.length("train")


def test_an_article_is_changed_before_a_vowel_and_nowhere_else() -> None:
    problem = compose(0, 0, world=scenes.WorldConfig(tasks=("color",)))
    slots = {"x": "the thing that is the color of a banana", "color": "orange"}

    def said(wording: str) -> str:
        edit = replace(problem.edit, wording=Wording((wording,), ()), slots=slots)
        return say(np.random.default_rng(0), edit, scenes.STANDARD, bench=False)

    assert said("paint {x} {color}") == "paint the thing that is the color of a banana orange"
    assert said("give {x} a {color} hat") == "give the thing that is the color of a banana an orange hat"
