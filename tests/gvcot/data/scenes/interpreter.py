"""Reads an instruction of Scenes from its words alone, and does in symbols what it says.

Written from the grammar in docs/scenes.md and from common knowledge; it shares no table and no template with
the world. Of the world's code it uses the records of a scene alone. It refuses what can be read in two ways.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from gvcot.data.scenes.world import Entity, Figure, Scene

CELL = 16.0
SIZES = ("small", "medium", "large", "huge")
MATERIALS = ("plain", "striped", "dotted", "shiny")
WALLS = ("gray", "sand", "sage", "slate", "mist", "clay")
HOLLOW = ("circle", "square", "triangle", "diamond")
PLAIN_SHAPES = (*HOLLOW, "cross", "star")
_STATES = {"person": "standing walking jumping", "lamp": "unlit lit", "door": "closed open"}
STATES = {"filled": PLAIN_SHAPES, "hollow": HOLLOW}
STATES |= {state: (shape,) for shape, states in _STATES.items() for state in states.split()}
"""State -> what can be in it; of each shape the first one is the usual."""

SHAPE_FACTS = {
    "circle": ("with no corners", "that could roll like a wheel"),
    "square": ("with four right angles", "like a chess board"),
    "triangle": ("with three sides", "with three corners"),
    "diamond": ("like a kite",),
    "cross": ("like a plus sign", "with four arms"),
    "star": ("with five points", "seen in the night sky"),
    "person": ("with a head", "that can talk"),
    "lamp": ("that can light a room", "with a bulb"),
    "door": ("that leads into a house", "with a handle"),
}
COLOR_FACTS = {
    "red": ("a tomato", "a strawberry"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("a banana", "a lemon"),
    "green": ("grass", "a frog"),
    "cyan": ("a turquoise stone", "a swimming pool"),
    "blue": ("the deep ocean", "a blueberry"),
    "white": ("snow", "milk"),
    "brown": ("chocolate", "coffee"),
    "black": ("coal", "a raven"),
}
SHAPES, COLORS = tuple(SHAPE_FACTS), tuple(COLOR_FACTS)
STEPS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
ORDINALS = {"second": 2, "third": 3}

# Units by which ranked neighbours must differ, and degrees off an axis at which a direction is still clear.
GAP, SIDEWAYS = 4.0, math.degrees(math.atan(0.62))


class Unclear(Exception):
    """The words mean nothing, or more than one thing."""


@dataclass(frozen=True)
class Found:
    """What a reference means; `head` is its outermost way of pointing: leftmost, above, largest, fact, ..."""

    entity: Entity
    head: str
    kind: str
    """spatial, property or knowledge."""
    anchors: tuple[Entity, ...] = ()
    """Things by which it is found."""


@dataclass(frozen=True)
class Meaning:
    """What an instruction means in a scene."""

    task: str
    references: tuple[Found, ...]
    marked: tuple[Entity, ...]
    region: str
    """What of the marked things is to be painted: thing, box, stamp or wall."""
    after: Scene
    rivals: tuple[Entity, ...]
    """Everything that the same words without their reference could be said of."""
    skeleton: str
    """The words with placeholders for the references and the values."""
    idle: Entity | None
    """What is only mentioned."""

    @property
    def referents(self) -> tuple[Entity, ...]:
        return tuple(found.entity for found in self.references)


def _any(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NOMINAL = re.compile(
    rf"(?:({_any(SIZES)}) )?(?:({_any(COLORS)}) )?(?:({_any(MATERIALS)}) )?(?:({_any(tuple(STATES))}) )?"
    rf"(?:({_any(SHAPES)})|thing(?: ({_any([f for facts in SHAPE_FACTS.values() for f in facts])}))?)"
    rf"(?: that is the color of ({_any([f for facts in COLOR_FACTS.values() for f in facts])}))?"
)


def _nominal(words: str, scene: Scene) -> tuple[list[Entity], bool]:
    """What fits a noun phrase without its article, and whether a fact is needed to tell."""
    match = _NOMINAL.fullmatch(words)
    if not match:
        raise Unclear(f"no noun phrase: {words!r}")
    size, color, material, state, shape, shape_fact, color_fact = match.groups()
    assert not (color_fact and color), f"two colours: {words!r}"
    shape = shape or next((s for s, facts in SHAPE_FACTS.items() if shape_fact in facts), None)
    color = color or next((c for c, facts in COLOR_FACTS.items() if color_fact in facts), None)
    if size and not shape:
        raise Unclear(f"sizes of unlike shapes are hard to compare: {words!r}")
    said = (size, color, material, state, shape)
    has = [(e, (e.size, e.color, e.material, e.state, e.shape)) for e in scene.entities]
    fits = [e for e, own in has if all(a in (None, b) for a, b in zip(said, own, strict=True))]
    return fits, bool(shape_fact or color_fact)


def _only(entities: Sequence[Entity], words: str) -> Entity:
    if len(entities) != 1:
        raise Unclear(f"{words!r} means {len(entities)} things")
    return entities[0]


def _ranked(entities: list[Entity], key: Callable[[Entity], float], rank: int, gap: float) -> Entity:
    """The rank-th by a key, if it can be told from its neighbours."""
    if len(entities) < max(2, rank):
        raise Unclear(f"number {rank} of {len(entities)}")
    ordered = sorted(entities, key=key)[: rank + 1]
    if any(key(far) - key(near) < gap for near, far in pairwise(ordered)):
        raise Unclear("a near-tie")
    return ordered[rank - 1]


def _direction(anchor: Entity, other: Entity) -> str:
    angle = math.degrees(math.atan2(anchor.y - other.y, other.x - anchor.x)) % 360
    if abs((angle + 45) % 90 - 45) > SIDEWAYS + 1e-6:
        raise Unclear(f"a direction between two: {angle:.0f} degrees")
    return ("right of", "above", "left of", "below")[int((angle + 45) % 360 // 90)]


def find(words: str, scene: Scene) -> Found:
    """The one thing that a reference means."""
    if match := re.fullmatch(rf"the (.+?) ({_any(tuple(STEPS))}) (the .+)", words):
        rest = re.sub(r"^(the .+?) that is (left of|right of|above|below) ", r"\1 \2 ", match[3])
        if rest == match[3] and re.search(rf" ({_any(tuple(STEPS))}) ", rest):
            raise Unclear(f"a chain of relations without 'that is': {words!r}")
        anchor = find(rest, scene)
        fits, knows = _nominal(match[1], scene)
        others = [e for e in fits if e != anchor.entity]
        meant = _only([e for e in others if _direction(anchor.entity, e) == match[2]], words)
        knows = knows or anchor.kind == "knowledge"
        kind, head = ("knowledge", "fact") if knows else ("spatial", match[2])
        return Found(meant, head, kind, (anchor.entity, *anchor.anchors))
    if match := re.fullmatch(
        r"the (?:(second|third) (.+) from the (left|right|top|bottom)|(left|right|top|bottom)most (.+))",
        words,
    ):
        side = match[3] or match[4]
        fits, knows = _nominal(match[2] or match[5], scene)
        sign = 1 if side in ("left", "top") else -1
        axis = "x" if side in ("left", "right") else "y"
        rank = ORDINALS.get(match[1] or "", 1)
        if rank > 1 and len(fits) < 3:
            raise Unclear("the second of two is the last")
        meant = _ranked(fits, lambda e: sign * getattr(e, axis), rank, GAP)
        return Found(meant, *(("fact", "knowledge") if knows else (f"{side}most", "spatial")))
    if match := re.fullmatch(r"the (?:(second) )?(largest|smallest) (.+)", words):
        fits, knows = _nominal(match[3], scene)
        if len({e.shape for e in fits}) > 1:
            raise Unclear(f"sizes of unlike shapes are hard to compare: {words!r}")
        sign = 1 if match[2] == "smallest" else -1
        meant = _ranked(fits, lambda e: sign * SIZES.index(e.size), ORDINALS.get(match[1] or "", 1), 1)
        return Found(meant, *(("fact", "knowledge") if knows else (match[2], "property")))
    if not words.startswith("the "):
        raise Unclear(f"no reference: {words!r}")
    fits, knows = _nominal(words.removeprefix("the "), scene)
    return Found(_only(fits, words), *(("fact", "knowledge") if knows else ("attributes", "property")))


_GROUPS = {
    "X": "(?P<x>the .+?)",
    "Y": "(?P<y>the .+?)",
    "NEW": rf"(?P<new>(?:(?:{_any(SIZES)}) )?(?:{_any(COLORS)}) "
    rf"(?:(?:{_any(MATERIALS)}) )?(?:{_any(SHAPES)}))",
    "COLOR": rf"(?P<color>{_any(COLORS)})",
    "WALL": rf"(?P<wall>{_any(WALLS)})",
    "MATERIAL": rf"(?P<material>{_any(MATERIALS)})",
    "WHERE": rf"(?P<where>{_any(tuple(STEPS))})",
    "WAY": "(?P<way>to the left|to the right|up|down)",
    "HALF": "(?P<half>top|bottom|left|right)",
    "TONE": "(?P<tone>lighter|darker)",
    "OTHER": rf"(?P<other>{_any(MATERIALS)}|larger|smaller)",
}

COMMANDS = """
insertion insert: (?:add|put|insert|draw|set) a NEW WHERE X
removal remove: (?:remove|delete|erase|take away) X | (?:take|cut) X away
change replace: replace X with a NEW | (?:turn|change) X into a NEW
change replace: (?:swap|change) X for a NEW | make X a NEW
background repaint: change the (?:background|wall) behind X to WALL
background repaint: (?:paint|make) the (?:background|wall) behind X WALL
extraction extract: (?:extract|isolate|keep only) X | (?:cut|take) X out alone | cut out X alone
human_attribute hat: give X a COLOR hat | (?:put|add|draw|set) a COLOR hat (?:on|to) X
human_attribute bare: take the hat off X | (?:remove|take away) the hat (?:of|from) X
human_attribute trousers: give X COLOR trousers | change the trousers of X to COLOR
human_attribute trousers: (?:paint|make) the trousers of X COLOR
color color: (?:make|paint|turn) X COLOR | change the color of X to COLOR | give X the color COLOR
color shade: (?:make|paint|turn) X a shade TONE | change X to a TONE shade | give X a TONE shade
material material: (?:make|turn) X MATERIAL | give X a MATERIAL surface
material material: change the (?:material|surface) of X to MATERIAL
state filled: fill X(?: in)? | (?:make|turn) X filled
state hollow: hollow X out | empty X | (?:make|turn) X hollow
state lit: (?:turn|switch) X on | switch on X | make X lit
state unlit: (?:turn|switch) X off | switch off X | make X unlit
state open: open X | (?:make|turn) X open | switch X to open
state closed: (?:close|shut) X | make X closed | switch X to closed
style sketch: draw X as a sketch | turn X into a sketch | sketch X | make X a sketch
style mosaic: draw X as a mosaic | turn X into a mosaic | pixelate X | make X a mosaic
style blur: blur X | (?:make|draw|turn) X blurred
motion standing: (?:make|let) X stand still | stop X | set X to stand still
motion walking: (?:make|let) X walk | set X (?:walking|to walk)
motion jumping: (?:make|let) X jump | set X (?:jumping|to jump)
pose up: raise the arms of X | make X raise both arms | let X hold both arms up | put both arms of X up
pose out: spread the arms of X | make X spread both arms | let X hold both arms out | put both arms of X out
pose down: lower the arms of X | make X lower both arms | let X hold both arms down
pose down: put both arms of X down
size grow: (?:make|turn) X (?:larger|bigger) | enlarge X | scale X up | scale up X
size shrink: (?:make|turn) X smaller | (?:shrink|reduce) X | scale X down | scale down X
movement move: (?:move|shift|slide|push|take|set) X WAY
structure split: split X (?:down the middle|in two) | cut X (?:in two|down the middle)
structure cut: (?:cut off|remove|take away) the HALF half of X | take the HALF half off X
structure join: join the halves of X | (?:bring|put) the halves of X together
structure complete: give X back its HALF half | add the missing HALF half of X | put back the HALF half of X
repair scratch: (?:repair|remove) the scratch on X | (?:fix|erase) the scratch of X
repair stain: (?:clean|wipe) the stain off X | remove the stain on X | erase the stain of X
repair crack: (?:repair|close) the crack in X | (?:fix|erase) the crack of X
watermark clean: remove the watermark from X | (?:erase|delete) the watermark on X
watermark clean: (?:take|clean) the watermark off X
multi_attribute both: (?:make|turn) X (?:both )?COLOR and OTHER | (?:make|turn) X OTHER and COLOR
multi_subject remove: (?:remove|delete|take away) X and Y | take X and Y away
multi_subject color: (?:make|paint|turn) X and Y COLOR | change the color of X and Y to COLOR
"""
"""Task, what is done, and the ways to say it."""


def _compiled() -> Iterator[tuple[str, str, re.Pattern[str]]]:
    for line in COMMANDS.strip().splitlines():
        names, patterns = line.split(": ", 1)
        task, deed = names.split()
        for pattern in patterns.split(" | "):
            yield task, deed, re.compile(re.sub(r"\b[A-Z]+\b", lambda m: _GROUPS[m[0]], pattern))


_PATTERNS = tuple(_compiled())
_IDLE = re.compile(r"(?:there is (the .+)|(the .+) is here|i see (the .+)) \. (.+)")


def read(instruction: str, scene: Scene, energy: float = 1.0) -> Meaning:
    """What an instruction means in a scene, and what the scene is afterwards.

    Args:
        instruction: the words.
        scene: what is there.
        energy: by how much a shade is lighter or darker; no word says that.

    Raises:
        Unclear: it can be read in no way, or in several.
    """
    idle, match = None, _IDLE.fullmatch(instruction)
    command = re.sub(r"\ban orange\b", "a orange", match[4] if match else instruction)
    if match:
        idle = find(match[1] or match[2] or match[3], scene).entity
    readings = []
    for task, deed, pattern in _PATTERNS:
        found = pattern.fullmatch(command)
        parts = found.groupdict() if found else {}
        if found and all(_is_reference(parts[k]) for k in ("x", "y") if k in parts):
            readings.append((task, deed, found))
    if len(readings) != 1:
        raise Unclear(f"{command!r} can be read in {len(readings)} ways: {[r[:2] for r in readings]}")
    task, deed, found = readings[0]
    parts = found.groupdict()
    references = tuple(find(parts[k], scene) for k in ("x", "y") if k in parts)
    meant = tuple(f.entity for f in references)
    marked, after = meant, _done(task, deed, parts, meant, scene, energy)
    if task == "insertion":
        marked = after.entities[-1:]
    region = {"insertion": "box", "watermark": "stamp", "background": "wall"}.get(task, "thing")
    rivals = tuple(e for e in scene.entities if _applies(task, deed, parts, e))
    skeleton = command
    for name in sorted(parts, key=lambda k: -found.start(k)):
        skeleton = skeleton[: found.start(name)] + f"{{{name}}}" + skeleton[found.end(name) :]
    return Meaning(task, references, marked, region, after, rivals, skeleton, idle)


def _is_reference(words: str) -> bool:
    """Whether words have the form of a reference, whatever there is in the scene."""
    rank = "(?:(?:second )?(?:largest|smallest) |(?:left|right|top|bottom)most |)"
    one, relation = rf"the {rank}{_NOMINAL.pattern}", rf"(?:{_any(tuple(STEPS))})"
    counted = rf"the (?:second|third) {_NOMINAL.pattern} from the (?:left|right|top|bottom)"
    chain = rf"the {_NOMINAL.pattern} {relation} the {_NOMINAL.pattern}(?: that is {relation} {one})?"
    return any(re.fullmatch(form, words) for form in (one, counted, chain))


def _applies(task: str, deed: str, parts: dict[str, str], e: Entity) -> bool:
    """Whether an edit can be asked for of a thing."""
    if task == "state":
        return e.shape in STATES[deed] and e.shape not in ("cross", "star") and e.state != deed
    if task == "repair":
        return e.defect == deed
    if task == "watermark":
        return e.stamped
    if task == "structure":
        broken = {"join": "split", "complete": f"no {parts.get('half')}"}.get(deed, "whole")
        return e.shape in PLAIN_SHAPES and e.structure == broken
    if task in ("human_attribute", "motion", "pose"):
        if e.shape != "person":
            return False
        figure = e.figure or Figure()
        done = {"motion": e.state == deed, "pose": figure.arms == deed}.get(task, False)
        return not done and (deed != "bare" or figure.hat is not None)
    return True


def _new(words: str, size: str, x: float, y: float) -> Entity:
    named = {name: group for group in (SIZES, COLORS, MATERIALS, SHAPES) for name in group}
    said = {named[word]: word for word in words.split()}
    shape = said[SHAPES]
    state = next(s for s, shapes in STATES.items() if shape in shapes)
    figure = Figure(arms="down", hat=None, trousers=None) if shape == "person" else None
    material = said.get(MATERIALS, "plain")
    return Entity(shape, said[COLORS], material, said.get(SIZES, size), x, y, state, figure)


def _resized(e: Entity, steps: int) -> Entity:
    return replace(e, size=SIZES[SIZES.index(e.size) + steps])


def _done(
    task: str, deed: str, parts: dict[str, str], meant: tuple[Entity, ...], scene: Scene, energy: float
) -> Scene:
    """The scene afterwards."""
    first = meant[0]
    if any(not _applies(task, deed, parts, e) for e in meant):
        raise Unclear(f"{task} can't be done to {first}")
    if task == "insertion":
        dx, dy = STEPS[parts["where"]]
        new = _new(parts["new"], "", first.x + CELL * dx, first.y + CELL * dy)
        return replace(scene, entities=(*scene.entities, new))
    if task == "extraction":
        return replace(scene, entities=(first,))
    if task == "background":
        backdrop = scene.backdrop
        place = first.x if backdrop.seam == "upright" else first.y
        behind = int(place > backdrop.cut * CELL)
        walls = tuple(parts["wall"] if i == behind else wall for i, wall in enumerate(backdrop.walls))
        return replace(scene, backdrop=replace(backdrop, walls=walls))
    if task == "removal" or (task, deed) == ("multi_subject", "remove"):
        return replace(scene, entities=tuple(e for e in scene.entities if e not in meant))
    entities = tuple(_changed(task, deed, parts, e, energy) if e in meant else e for e in scene.entities)
    return replace(scene, entities=entities)


def _changed(task: str, deed: str, parts: dict[str, str], e: Entity, energy: float) -> Entity:
    """One thing afterwards."""
    if task == "movement":
        dx, dy = {"up": (0, -1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}[parts["way"].split()[-1]]
        return replace(e, x=e.x + CELL * dx, y=e.y + CELL * dy)
    if task == "multi_attribute":
        e = replace(e, color=parts["color"])
        if parts["other"] in MATERIALS:
            return replace(e, material=parts["other"])
        return _resized(e, 1 if parts["other"] == "larger" else -1)
    if task == "human_attribute":
        figure, part = e.figure or Figure(), "trousers" if deed == "trousers" else "hat"
        return replace(e, figure=replace(figure, **{part: parts.get("color")}))
    if task == "change":
        return _new(parts["new"], e.size, e.x, e.y)
    if task == "size":
        return _resized(e, 1 if deed == "grow" else -1)
    if task == "structure":
        broken = {"split": "split", "cut": f"no {parts.get('half')}"}
        return replace(e, structure=broken.get(deed, "whole"))
    if task == "pose":
        return replace(e, figure=replace(e.figure or Figure(), arms=deed))
    if deed == "shade":
        return replace(e, shade=energy if parts["tone"] == "lighter" else -energy)
    if deed == "color":
        return replace(e, color=parts["color"])
    if task in ("state", "motion"):
        return replace(e, state=deed)
    changes = {"material": parts.get("material"), "style": deed, "defect": None, "stamped": False}
    field = {"repair": "defect", "watermark": "stamped"}.get(task, task)
    return replace(e, **{field: changes[field]})
