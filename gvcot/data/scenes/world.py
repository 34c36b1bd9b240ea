"""What the world is made of: colours, shapes, sizes, materials, and what people know about them.

Lengths are in world units: the image is always 64 x 64 units, whatever its size in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

WORLD = 64.0
"""Side of the world in world units; a 64 px image has one pixel per unit."""

GRID = 4
"""Cells per side. Each entity has a cell of its own."""

CELL = WORLD / GRID
"""Side of a cell in world units."""

JITTER = 0.95
"""Largest offset of an entity from its cell's centre, per axis. With the largest radius it stays just under
half a cell, so entities never overlap, and any entity can grow or move without leaving its cell."""

RADII = MappingProxyType({"small": 4.5, "medium": 5.75, "large": 7.0})
"""Radius per size word, in ascending order; neighbours differ by more than a fifth."""

SIZES = tuple(RADII)

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
"""Muted background colours at mid height, sRGB; a gentle vertical gradient is added."""

GRADIENT = 9.0
"""Levels by which the background is lighter at the top and darker at the bottom."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")

MATERIALS = ("plain", "striped", "shiny")

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
"""Things with a well-known colour, as in "the shape that is the color of grass"."""

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
    }
)
"""Descriptions that fit exactly one of the shapes, as in "the shape with three sides"."""


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

    @property
    def radius(self) -> float:
        """In world units."""
        return RADII[self.size]

    @property
    def cell(self) -> tuple[int, int]:
        """(column, row) of the cell it stands in."""
        return int(self.x // CELL), int(self.y // CELL)

    def describe(self) -> str:
        """Canonical description without article, e.g. "small red striped circle"."""
        material = "" if self.material == "plain" else f"{self.material} "
        return f"{self.size} {self.color} {material}{self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A background and the things on it."""

    background: str
    entities: tuple[Entity, ...]

    def is_free(self, cell: tuple[int, int]) -> bool:
        """Whether the cell lies on the grid and nothing stands in it."""
        column, row = cell
        on_grid = 0 <= column < GRID and 0 <= row < GRID
        return on_grid and all(entity.cell != cell for entity in self.entities)

    def free_directions(self, entity: Entity) -> list[str]:
        """Directions in which the neighbouring cell of `entity` is free."""
        column, row = entity.cell
        return [name for name, (dx, dy) in DIRECTIONS.items() if self.is_free((column + dx, row + dy))]
