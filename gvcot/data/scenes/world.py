"""What the world is made of: colours, shapes, sizes, materials, states, and what people know about them.

Lengths are in world units: a cell is 16 x 16 units, and at the smallest picture size a unit is a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

CELL = 16.0
"""Side of a cell in world units. Each entity has a cell of its own, a huge one a block of 2 x 2."""

JITTER = 0.95
"""Largest offset of an entity from the centre of its place, per axis. With the largest radius it stays just
under half a cell, so entities never overlap, and any entity can grow or move without leaving its cell."""

RADII = MappingProxyType({"small": 4.5, "medium": 5.75, "large": 7.0, "huge": 11.5})
"""Radius per size word, in ascending order; neighbours differ by more than a fifth."""

SIZES = tuple(RADII)

STEPS = SIZES[:3]
"""Sizes that fit one cell: what things are by default, and between which they can be scaled."""

HUGE = SIZES[3]

COLORS = MappingProxyType(
    {
        "red": (214, 40, 40),
        "orange": (245, 138, 20),
        "yellow": (250, 222, 50),
        "green": (36, 150, 60),
        "cyan": (50, 208, 224),
        "blue": (38, 74, 210),
        "white": (248, 248, 248),
        "brown": (116, 66, 30),
        "black": (32, 32, 36),
    }
)
"""Entity colours, sRGB. None is near the overlay's magenta."""

BACKGROUNDS = MappingProxyType(
    {
        "gray": (158, 160, 162),
        "sand": (178, 164, 140),
        "sage": (146, 166, 146),
        "slate": (124, 138, 152),
        "mist": (164, 178, 190),
        "clay": (160, 142, 132),
    }
)
"""Muted colours of walls at mid height, sRGB; a gentle vertical gradient is added."""

GRADIENT = 9.0
"""Levels by which the background is lighter at the top and darker at the bottom."""

PLAIN_SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
PERSON, LAMP, DOOR = "person", "lamp", "door"
SHAPES = (*PLAIN_SHAPES, PERSON, LAMP, DOOR)

MATERIALS = ("plain", "striped", "dotted", "shiny")

STATES = MappingProxyType(
    {
        **dict.fromkeys(("circle", "square", "triangle", "diamond"), ("filled", "hollow")),
        "cross": ("filled",),
        "star": ("filled",),
        PERSON: ("standing", "walking", "jumping"),
        LAMP: ("unlit", "lit"),
        DOOR: ("closed", "open"),
    }
)
"""What a thing of each shape can be; the first is the usual. A cross and a star are too thin to be hollow."""

ARMS = ("down", "out", "up")

STRUCTURES = ("whole", "split", "no top", "no bottom", "no left", "no right")
"""Which part of a thing is there: all of it, two halves with a gap, or one half."""

STYLES = ("flat", "sketch", "mosaic", "blur")

DEFECTS = ("scratch", "stain", "crack")

DIRECTIONS = MappingProxyType({"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)})
"""Unit steps (x, y) on the grid; y points down."""

COLOR_FACTS = MappingProxyType(
    {
        "a tomato": "red",
        "a strawberry": "red",
        "a carrot": "orange",
        "a pumpkin": "orange",
        "a banana": "yellow",
        "a lemon": "yellow",
        "grass": "green",
        "a frog": "green",
        "a turquoise stone": "cyan",
        "a swimming pool": "cyan",
        "the deep ocean": "blue",
        "a blueberry": "blue",
        "snow": "white",
        "milk": "white",
        "chocolate": "brown",
        "coffee": "brown",
        "coal": "black",
        "a raven": "black",
    }
)
"""Things with a well-known colour, as in "the thing that is the color of grass"."""

SHAPE_FACTS = MappingProxyType(
    {
        "with no corners": "circle",
        "that could roll like a wheel": "circle",
        "with four right angles": "square",
        "like a chess board": "square",
        "with three sides": "triangle",
        "with three corners": "triangle",
        "like a kite": "diamond",
        "like a plus sign": "cross",
        "with four arms": "cross",
        "with five points": "star",
        "seen in the night sky": "star",
        "with a head": PERSON,
        "that can talk": PERSON,
        "that can light a room": LAMP,
        "with a bulb": LAMP,
        "that leads into a house": DOOR,
        "with a handle": DOOR,
    }
)
"""Descriptions that fit exactly one of the shapes, as in "the thing with three sides"."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What a person has beyond the shirt, which shows the entity's colour and material."""

    arms: str = "down"
    """One of ARMS."""
    hat: str | None = None
    """Its colour; None: bare-headed."""
    trousers: str | None = None
    """Their colour; None: dark gray."""


@dataclass(frozen=True, slots=True)
class Entity:
    """One thing in the world."""

    shape: str
    color: str
    material: str
    size: str
    x: float
    """Centre, world units from the left."""
    y: float
    """Centre, world units from the top."""
    state: str = ""
    """One of STATES of its shape; the usual one where not given."""
    figure: Figure | None = None
    """Of a person."""
    structure: str = "whole"
    style: str = "flat"
    defect: str | None = None
    """One of DEFECTS, or None."""
    stamped: bool = False
    """Whether a watermark lies over it."""
    shade: float = 0.0
    """Share by which its colour is lightened (above 0) or darkened (below 0)."""

    def __post_init__(self) -> None:
        if not self.state:
            object.__setattr__(self, "state", STATES[self.shape][0])
        if self.shape == PERSON and self.figure is None:
            object.__setattr__(self, "figure", Figure())

    @property
    def radius(self) -> float:
        """In world units."""
        return RADII[self.size]

    @property
    def cells(self) -> frozenset[tuple[int, int]]:
        """(column, row) of the cells it stands in: one, or four for a huge thing."""
        return cells_at(self.x, self.y, self.size)

    def describe(self) -> str:
        """Canonical description without article, e.g. "small red striped circle"."""
        words = [self.size, self.color]
        words += [self.material] if self.material != MATERIALS[0] else []
        words += [self.state] if self.state != STATES[self.shape][0] else []
        return " ".join([*words, self.shape])


def cells_at(x: float, y: float, size: str) -> frozenset[tuple[int, int]]:
    """The cells that a thing of this size takes when its centre is at (x, y)."""
    if size != HUGE:
        return frozenset({(int(x // CELL), int(y // CELL))})
    column, row = round(x / CELL), round(y / CELL)
    return frozenset((column + i, row + j) for i in (-1, 0) for j in (-1, 0))


@dataclass(frozen=True, slots=True)
class Backdrop:
    """What is behind the things: one wall, or two that meet at a seam between cells."""

    walls: tuple[str, ...]
    """One or two of BACKGROUNDS; the first is to the left of the seam, or above it."""
    seam: Literal["upright", "level"] = "upright"
    cut: int = 0
    """Where the seam is, in cells from the left or the top."""

    def wall_behind(self, entity: Entity) -> int:
        """Index of the wall that an entity stands before."""
        if len(self.walls) == 1:
            return 0
        return int((entity.x if self.seam == "upright" else entity.y) >= self.cut * CELL)


@dataclass(frozen=True, slots=True)
class Scene:
    """A backdrop and the things before it, on a grid of cells."""

    grid: int
    """Cells per side."""
    backdrop: Backdrop
    entities: tuple[Entity, ...]

    @property
    def side(self) -> float:
        """World units per side of the picture."""
        return self.grid * CELL

    def free_directions(self, entity: Entity) -> list[str]:
        """Directions in which the entity can move by one cell."""
        taken = {cell for other in self.entities if other != entity for cell in other.cells}
        free = []
        for name, (dx, dy) in DIRECTIONS.items():
            cells = {(column + dx, row + dy) for column, row in entity.cells}
            on_grid = all(0 <= c < self.grid and 0 <= r < self.grid for c, r in cells)
            if on_grid and not cells & taken:
                free.append(name)
        return free
