"""How hard the world is: three named levels, and every setting by itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import MappingProxyType

from gvcot.errors import DataError, closest


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """Settings of the world. Ranges are (least, most), both included.

    Raises:
        DataError: a setting is outside what the world can show.
    """

    grid: int = 4
    """Cells per side, 3 to 6. The picture is at least 16 pixels a cell."""

    entities: tuple[int, int] = (4, 9)
    """Things in a scene, 1 to 24 and at most one a cell."""

    look_alikes: tuple[int, int] = (1, 4)
    """Other things that share the referent's shape, its colour or both, 0 to 8; all others share neither."""

    hops: tuple[int, int] = (1, 2)
    """Things to be found before the referent is: 1, none but itself; 3, "left of the square above ..."."""

    area: tuple[float, float] = (0.005, 0.05)
    """Share of the picture that the referent covers. From .06 on scenes may hold a huge thing."""

    energy: float = 1.0
    """Of a colour edit: 1 is another colour; less, a shade lighter or darker by this share (from .1)."""

    full_names: float = 0.0
    """Share of the instructions that say all there is to say of their referent ("the small red dotted open
    door"), whatever would do. Outside the benchmark only."""

    distractors: float = 0.0
    """Share of the instructions that also name something that has no part in them."""

    paraphrases: int | None = None
    """Wordings of each kind of edit, 1: always the same one. None: all that training knows."""

    def __post_init__(self) -> None:
        fewest, most = self.entities
        if not 3 <= self.grid <= 6:
            raise DataError(f"grid={self.grid} is outside the world; expected 3 to 6 cells per side")
        room = min(24, self.grid * self.grid)
        if not 1 <= fewest <= most <= room:
            raise DataError(
                f"entities={self.entities} do not fit a grid of {self.grid}; expected (fewest, "
                f"most) within 1 to {room}"
            )
        for name, low, high in (("look_alikes", 0, 8), ("hops", 1, 3), ("area", 0.0, 0.2)):
            least, greatest = getattr(self, name)
            if not low <= least <= greatest <= high:
                raise DataError(f"{name}={(least, greatest)}; expected (least, most) within {low} to {high}")
        if self.look_alikes[0] > fewest - 1:
            raise DataError(
                f"look_alikes={self.look_alikes} do not fit entities={self.entities}: the smallest scene has "
                f"{fewest - 1} other things; lower look_alikes or raise entities"
            )
        if self.hops[0] > fewest:
            raise DataError(f"hops={self.hops} need more things than entities={self.entities} has")
        if not 0.1 <= self.energy <= 1:
            raise DataError(f"energy={self.energy}; expected .1 (a shade) to 1 (another colour)")
        for name in ("full_names", "distractors"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}={getattr(self, name)}; expected a share from 0 to 1")
        if self.paraphrases is not None and self.paraphrases < 1:
            raise DataError(f"paraphrases={self.paraphrases}; expected 1 or more, or none given for all")

    @property
    def size(self) -> int:
        """Smallest picture that shows it, pixels per side."""
        return 16 * self.grid

    @property
    def huge(self) -> bool:
        """Whether scenes may hold a huge thing."""
        return self.area[1] >= 0.06


EASY = Level(entities=(2, 4), look_alikes=(0, 0), hops=(1, 1), area=(0.005, 0.05))
"""Few things, and the referent's shape and colour are its own: what the base model is trained on."""

STANDARD = Level()
"""Crowded, with look-alikes: the default, and what claims are made on."""

HARD = Level(
    grid=5,
    entities=(10, 24),
    look_alikes=(3, 8),
    hops=(1, 3),
    area=(0.005, 0.1),
    energy=0.35,
    distractors=0.5,
)
"""Up to 24 things in 80 pixels, up to eight look-alikes, long references, faint edits, idle words."""

LEVELS = MappingProxyType({"easy": EASY, "standard": STANDARD, "hard": HARD})


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """A named level, and the settings in which a run departs from it; see `Level` for each.

    Raises:
        DataError: an unknown level, or settings that the world can't show together.
    """

    level: str = "standard"
    """One of easy, standard, hard."""

    tasks: tuple[str, ...] | None = None
    """Kinds of edits to draw from, in the paper's proportions; None: all."""

    grid: int | None = None
    entities: tuple[int, int] | None = None
    look_alikes: tuple[int, int] | None = None
    hops: tuple[int, int] | None = None
    area: tuple[float, float] | None = None
    energy: float | None = None
    full_names: float | None = None
    distractors: float | None = None
    paraphrases: int | None = None

    def __post_init__(self) -> None:
        self.resolve()

    def resolve(self) -> Level:
        """The level with all settings filled in."""
        if self.level not in LEVELS:
            raise DataError(f"unknown level {self.level!r} of Scenes; {closest(self.level, tuple(LEVELS))}")
        base = LEVELS[self.level]
        own = {f.name: getattr(self, f.name) for f in fields(Level)}
        values = {name: getattr(base, name) if value is None else value for name, value in own.items()}
        return Level(**values)


DEFAULT = WorldConfig()
"""The standard level with all tasks."""
