"""Every setting of a level does what it says; settings that the world can't show are refused with a hint."""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from statistics import median

import numpy as np
import pytest

from gvcot.data import scenes
from gvcot.data.scenes.generator import Problem, compose
from gvcot.data.scenes.levels import Level, WorldConfig
from gvcot.data.scenes.render import silhouette
from gvcot.errors import DataError

from .interpreter import read


def composed(world: WorldConfig, count: int, seed: int = 0) -> list[Problem]:
    return [compose(seed, index, world=world) for index in range(count)]


def alike(problem: Problem) -> int:
    """Other things of the referent's shape or colour."""
    entities, meant = problem.edit.before.entities, problem.references[0].entity
    return sum(e.x != meant.x and (e.shape == meant.shape or e.color == meant.color) for e in entities)


@pytest.mark.parametrize(
    ("level", "grid", "entities", "look_alikes"),
    [("easy", 4, (2, 4), (0, 0)), ("standard", 4, (4, 9), (1, 4)), ("hard", 5, (10, 24), (3, 8))],
)
def test_named_levels_have_their_crowds(
    level: str, grid: int, entities: tuple[int, int], look_alikes: tuple[int, int]
) -> None:
    problems = composed(WorldConfig(level=level), 300)
    counts, twins = [len(p.edit.before.entities) for p in problems], [alike(p) for p in problems]
    assert (min(counts), max(counts)) == entities
    assert (min(twins), max(twins)) == look_alikes
    assert {p.edit.before.grid for p in problems} == {grid}
    assert len(scenes.generate(0, 0, world=WorldConfig(level=level)).source_HW3) == 16 * grid


@pytest.mark.parametrize("wanted", [0, 1, 3, 6])
def test_look_alikes_are_counted_exactly(wanted: int) -> None:
    world = WorldConfig(entities=(7, 8), look_alikes=(wanted, wanted), hops=(1, 1))
    assert {alike(p) for p in composed(world, 80)} == {wanted}


@pytest.mark.parametrize("count", [2, 5, 16])
def test_entities_are_counted_exactly(count: int) -> None:
    world = WorldConfig(
        entities=(count, count), look_alikes=(1, 1), hops=(1, 2), tasks=("color", "repair", "size")
    )
    assert {len(p.edit.before.entities) for p in composed(world, 40)} == {count}


@pytest.mark.parametrize("grid", [3, 4, 5, 6])
def test_things_fill_the_grid(grid: int) -> None:
    columns = {int(e.x // 16) for p in composed(WorldConfig(grid=grid), 60) for e in p.edit.before.entities}
    rows = {int(e.y // 16) for p in composed(WorldConfig(grid=grid), 60) for e in p.edit.before.entities}
    assert columns == rows == set(range(grid))


@pytest.mark.parametrize(
    ("hops", "wanted"), [((1, 1), {1}), ((2, 2), {2}), ((3, 3), {3}), ((1, 3), {1, 2, 3})]
)
def test_hops_are_how_many_things_must_be_found(hops: tuple[int, int], wanted: set[int]) -> None:
    found = set()
    for problem in composed(WorldConfig(entities=(6, 9), hops=hops), 250):
        reference = read(problem.instruction, problem.edit.before).references[0]
        if reference.kind == "property":
            assert not reference.anchors
        else:
            found.add(1 + len(reference.anchors))
    assert found == wanted


@pytest.mark.parametrize("area", [(0.005, 0.015), (0.02, 0.03), (0.06, 0.2)])
def test_area_is_the_share_of_the_picture(area: tuple[float, float]) -> None:
    for problem in composed(WorldConfig(area=area, tasks=("removal", "color", "extraction")), 60):
        share = silhouette(problem.references[0].entity, 64.0, 512).mean()
        assert area[0] * 0.8 <= share <= area[1] * 1.2  # the world counts whole pixels


def test_huge_things_come_with_large_areas_only() -> None:
    def sizes(world: WorldConfig) -> set[str]:
        return {e.size for p in composed(world, 100) for e in p.edit.before.entities}

    assert "huge" not in sizes(WorldConfig())
    assert "huge" in sizes(WorldConfig(level="hard"))
    world = WorldConfig(area=(0.06, 0.2), tasks=("removal", "color"))
    assert {p.references[0].entity.size for p in composed(world, 30)} == {"huge"}


@pytest.mark.parametrize("energy", [0.1, 0.35, 0.9])
def test_energy_below_one_asks_for_a_shade(energy: float) -> None:
    world = WorldConfig(energy=energy, tasks=("color",))
    brighter = {"lighter": 0, "darker": 0}
    for index in range(40):
        sample, edit = scenes.generate(0, index, world=world), compose(0, index, world=world).edit
        (old,), (new,) = (
            set(a.entities) - set(b.entities)
            for a, b in ((edit.before, edit.after), (edit.after, edit.before))
        )
        tone = "lighter" if "lighter" in sample.instruction else "darker"
        assert f" {tone}" in sample.instruction
        assert abs(new.shade) == energy
        assert (new.color, new.material, old.shade) == (old.color, old.material, 0)
        assert sample.target_HW3 is not None
        change = sample.target_HW3[sample.mask_HW].mean() - sample.source_HW3[sample.mask_HW].mean()
        assert (change > 0) == (tone == "lighter"), sample.instruction
        brighter[tone] += 1
    assert min(brighter.values()) > 0


def test_energy_of_one_asks_for_another_colour() -> None:
    assert all(
        e.shade == 0 for p in composed(WorldConfig(tasks=("color",)), 60) for e in p.edit.after.entities
    )


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_distractors_are_a_share_of_the_instructions(share: float) -> None:
    problems = composed(WorldConfig(distractors=share), 200)
    idle = [read(p.instruction, p.edit.before).idle for p in problems]
    assert abs(sum(e is not None for e in idle) / 200 - share) <= 4 * sqrt(share * (1 - share) / 200)


def test_paraphrases_limit_the_ways_to_say_an_edit() -> None:
    def ways(paraphrases: int | None) -> dict[str, int]:
        found = defaultdict(set)
        tasks = ("color", "removal", "size", "movement", "change", "state")
        for problem in composed(WorldConfig(level="easy", tasks=tasks, paraphrases=paraphrases), 400):
            kind = problem.edit.wording.train[0]
            found[kind].add(read(problem.instruction, problem.edit.before).skeleton)
        return {kind: len(skeletons) for kind, skeletons in found.items()}

    assert set(ways(1).values()) == {1}
    assert max(ways(2).values()) == 2
    assert min(ways(None).values(), default=0) >= 1
    assert median(ways(None).values()) >= 3


def test_easy_referents_have_a_shape_and_a_colour_of_their_own() -> None:
    for problem in composed(WorldConfig(level="easy"), 200):
        assert alike(problem) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": "hrad"}, "unknown level 'hrad'.*did you mean 'hard'"),
        ({"grid": 2}, "grid=2.*3 to 6"),
        ({"grid": 7}, "grid=7.*3 to 6"),
        ({"entities": (0, 4)}, r"entities=\(0, 4\).*1 to 16"),
        ({"entities": (5, 4)}, "fewest"),
        ({"entities": (4, 17)}, "grid of 4.*1 to 16"),
        ({"grid": 6, "entities": (4, 25)}, "1 to 24"),
        ({"look_alikes": (0, 9)}, "look_alikes.*0 to 8"),
        ({"look_alikes": (4, 4)}, "3 other things; lower look_alikes or raise entities"),
        ({"level": "easy", "look_alikes": (2, 2)}, "1 other things"),
        ({"hops": (0, 1)}, "hops.*1 to 3"),
        ({"hops": (2, 4)}, "hops.*1 to 3"),
        ({"level": "easy", "hops": (3, 3)}, "hops.*need more things"),
        ({"area": (0.0, 0.5)}, "area.*0.0 to 0.2"),
        ({"area": (0.04, 0.02)}, "least, most"),
        ({"energy": 0.0}, "a shade"),
        ({"energy": 1.5}, "another colour"),
        ({"distractors": 1.5}, "share from 0 to 1"),
        ({"paraphrases": 0}, "1 or more"),
    ],
)
def test_settings_that_the_world_cant_show_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        WorldConfig(**settings)  # pyright: ignore[reportArgumentType]


def test_a_task_that_no_scene_suits_is_refused_with_a_hint() -> None:
    world = WorldConfig(entities=(1, 1), look_alikes=(0, 0), hops=(1, 1), tasks=("multi_subject",))
    with pytest.raises(DataError, match="no scene suits task 'multi_subject'.*loosen"):
        compose(0, 0, world=world)


def test_a_level_is_all_its_settings() -> None:
    assert WorldConfig().resolve() == Level() == scenes.STANDARD
    assert WorldConfig(level="hard", energy=1.0).resolve().energy == 1.0
    assert WorldConfig(level="hard", energy=1.0).resolve().grid == 5
    spelt_out = WorldConfig(grid=4, entities=(4, 9), look_alikes=(1, 4), hops=(1, 2), energy=1.0)
    for index in range(5):
        one, other = (scenes.generate(0, index, world=w) for w in (WorldConfig(), spelt_out))
        assert one.sample_id == other.sample_id
        assert (one.target_HW3 == other.target_HW3).all()


def test_samples_of_different_worlds_have_different_names() -> None:
    worlds = [
        WorldConfig(),
        WorldConfig(level="easy"),
        WorldConfig(level="hard"),
        WorldConfig(energy=0.5),
        WorldConfig(energy=0.4),
        WorldConfig(tasks=("color",)),
        WorldConfig(tasks=("color",), energy=0.5),
    ]
    names = [scenes.generate(0, 0, world=world).sample_id for world in worlds]
    assert len(set(names)) == len(worlds)
    assert names[:3] == ["scenes/train/0/0", "scenes/train/0/0/easy", "scenes/train/0/0/hard"]
    assert np.unique([len(name.split("/")) for name in names]).tolist() == [4, 5, 6]
