"""One sample of a dataset: a record of plain values and the bytes of two images.

    id             str, unique in the dataset
    instruction    str
    task           str, one of the paper's 19 tasks (or of `PairsConfig.tasks`)
    mask           the region to edit, as COCO RLE: {"size": [height, width], "counts": str or list}
    change_mask    optional RLE: where source and target may differ; unknown where absent
    paint          optional: "mask" (default), or "box" for the place of an insertion
    regions        optional list of RLE: the parts of `mask`; its connected parts where absent
    referral       optional: spatial, property, knowledge; "unknown" where absent
    region_caption, scene_caption, pointers, things (a list of RLE), referents
                   optional; see `gvcot.types.EditSample`

Everything else is kept as the sample's `metadata`.

Legend: H W pixels.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast, get_args

import numpy as np
from PIL import Image
from pycocotools import mask as coco
from scipy import ndimage

from gvcot.data.pairs.config import Resize
from gvcot.data.pairs.prepare import centred_square, prepare, prepare_mask
from gvcot.errors import DataError, closest
from gvcot.types import EditSample, PaintStyle, Referral, Region

VERSION = 1
"""Goes up whenever the same record gives another sample, so that stored encodings are made anew."""

FIELDS = frozenset(
    {"id", "source", "target", "instruction", "task", "mask", "change_mask", "paint", "referral", "regions"}
    | {"region_caption", "scene_caption", "pointers", "things", "referents"}
)
"""All known fields. "source" and "target" are the images' places in some containers."""

UNDECODABLE = (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises at broken images."""


class Raw(NamedTuple):
    """A sample as a container holds it. An image that can't be read raises a SampleError when it is asked
    for."""

    record: Mapping[str, Any]
    source: Callable[[], bytes]
    target: Callable[[], bytes] | None


class SampleError(DataError):
    """A sample that can't be used. `kind` is what bad samples are counted by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)
        self.kind, self.message = kind, message

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What a run asks of samples."""

    size: int | None
    """Pixels per side; None: images stay as they are."""

    resize: Resize | None
    """How other sizes are made to fit."""

    tasks: frozenset[str]
    """Known tasks."""

    need_target: bool
    """Whether a sample without a target is bad."""


def decode(raw: Raw, fit: Fit) -> EditSample:
    """The sample that a container's entry stands for.

    Raises:
        SampleError: what is wrong with it.
    """
    record = raw.record
    instruction, task = text(record, "instruction").strip(), text(record, "task")
    if not instruction:
        raise SampleError("empty_instruction", "it has no words")
    if task not in fit.tasks:
        raise SampleError("unknown_task", f"{task!r}; {closest(task, fit.tasks)}")
    source_HW3, target_HW3 = images(raw, fit)
    height, width = source_HW3.shape[:2]

    def cut(pixels: np.ndarray) -> np.ndarray:
        return centred_square(pixels) if fit.size is not None and fit.resize == "crop" else pixels

    def mask(value: Any, name: str, *, whole: bool = False) -> np.ndarray:
        mask_HW = cut(mask_of(value, name, (height, width)))
        return mask_HW if fit.size is None else prepare_mask(mask_HW, fit.size, keep_all=whole)

    mask_HW = mask(record.get("mask"), "mask")
    if not mask_HW.any():
        raise SampleError("empty_mask", "no pixel of it is left" if fit.size else "no pixel is set")
    parts = [part for given in sequence(record, "regions") if (part := mask(given, "regions")).any()]
    things = [mask(thing, "things") for thing in sequence(record, "things")]
    change = record.get("change_mask")
    return EditSample(
        sample_id=text(record, "id"),
        source_HW3=prepare(cut(source_HW3), fit.size),
        instruction=instruction,
        task=task,
        referral=choice(record, "referral", (*get_args(Referral), "unknown"), "unknown"),
        mask_HW=mask_HW,
        regions=tuple(region(part) for part in parts or connected(mask_HW)),
        paint=cast(PaintStyle, choice(record, "paint", get_args(PaintStyle), "mask")),
        region_caption=text(record, "region_caption", ""),
        scene_caption=text(record, "scene_caption", ""),
        pointers=pairs_of_texts(record, "pointers"),
        target_HW3=None if target_HW3 is None else prepare(cut(target_HW3), fit.size),
        change_mask_HW=None if change is None else mask(change, "change_mask", whole=True),
        things=tuple(region(thing) for thing in things),
        referents=places_in(record, "referents", len(things)),
        metadata={k: v for k, v in record.items() if k not in FIELDS and v is not None},
    )


def images(raw: Raw, fit: Fit) -> tuple[np.ndarray, np.ndarray | None]:
    """Source and target as they are stored, of one size that the run can take."""
    if raw.target is None and fit.need_target:
        raise SampleError("no_target", "training needs the edited image")
    source_HW3 = image(raw.source(), "source")
    target_HW3 = None if raw.target is None else image(raw.target(), "target")
    if target_HW3 is not None and target_HW3.shape != source_HW3.shape:
        raise SampleError("target_size", f"target {size_of(target_HW3)}, source {size_of(source_HW3)}")
    if fit.size is not None and fit.resize is None and source_HW3.shape[:2] != (fit.size, fit.size):
        wanted = f"the run takes {fit.size}x{fit.size}; resize=square or resize=crop makes it fit"
        raise SampleError("image_size", f"{size_of(source_HW3)}, {wanted}")
    return source_HW3, target_HW3


def encode(sample: EditSample) -> dict[str, Any]:
    """The record of a sample: `decode` gives it back."""
    optional: dict[str, Any] = {
        "change_mask": None if sample.change_mask_HW is None else rle(sample.change_mask_HW),
        "paint": sample.paint,
        "referral": sample.referral,
        "region_caption": sample.region_caption,
        "scene_caption": sample.scene_caption,
        "pointers": [list(pair) for pair in sample.pointers],
        "regions": [rle(part.mask_HW) for part in sample.regions],
        "things": [rle(thing.mask_HW) for thing in sample.things],
        "referents": list(sample.referents),
    }
    return {
        "id": sample.sample_id,
        "instruction": sample.instruction,
        "task": sample.task,
        "mask": rle(sample.mask_HW),
        **{name: value for name, value in optional.items() if value not in (None, "", [])},
        **sample.metadata,
    }


def image(data: bytes, name: str) -> np.ndarray:
    """uint8 (H, W, 3) of an encoded image. Pixels as they are stored: an EXIF rotation isn't applied, since
    masks are drawn on stored pixels."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            return np.asarray(opened.convert("RGB"), dtype=np.uint8)
    except UNDECODABLE as error:
        raise SampleError("undecodable_image", f"{name}: {error}") from error


def rle(mask_HW: np.ndarray) -> dict[str, Any]:
    """COCO RLE of a bool mask, with text counts."""
    found = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {
        "size": [int(side) for side in found["size"]],
        "counts": cast(bytes, found["counts"]).decode("ascii"),
    }


def mask_of(value: Any, name: str, size: tuple[int, int]) -> np.ndarray:
    """bool (H, W) of an RLE, compressed (str, bytes) or not (a list of runs).

    Raises:
        SampleError: no RLE, or of another size than the source.
    """
    if not isinstance(value, Mapping) or "size" not in value or "counts" not in value:
        raise SampleError("bad_mask", f"{name}: expected {{'size': [height, width], 'counts': ...}}")
    if value["size"] != list(size):
        raise SampleError("mask_size", f"{name} is of size {value['size']!r:.50}, the source of {list(size)}")
    plain: Any = {"size": list(size), "counts": value["counts"]}
    try:
        packed = coco.frPyObjects(plain, *size) if isinstance(plain["counts"], list) else plain
        mask_HW = coco.decode(packed).astype(bool)
    except (ValueError, TypeError, OverflowError) as error:
        raise SampleError("bad_mask", f"{name}: {error}") from error
    if not _fills(packed, size):
        raise SampleError("bad_mask", f"{name}: its runs end before the image does")
    return mask_HW


def _fills(packed: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether the runs reach the last pixel: pycocotools leaves what they don't reach undefined, and
    complains of runs that go further, as whole ones do in a mask that is one pixel smaller."""
    try:
        coco.decode({"size": [1, size[0] * size[1] - 1], "counts": packed["counts"]})
    except ValueError:
        return True
    return False


def connected(mask_HW: np.ndarray) -> list[np.ndarray]:
    """The connected parts of a mask, diagonals included."""
    label_HW, count = cast(tuple[np.ndarray, int], ndimage.label(mask_HW, structure=np.ones((3, 3))))
    return [label_HW == i for i in range(1, count + 1)]


def region(mask_HW: np.ndarray) -> Region:
    """A mask with its tight box; that of an empty mask has no area."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return Region(box=(0, 0, 0, 0), mask_HW=mask_HW)
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Region(box=box, mask_HW=mask_HW)


def text(record: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that is text."""
    value = record.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise SampleError("bad_field", f"{name}: expected text, got {value!r:.50}")
    return valid(value, name)


def valid(value: str, name: str) -> str:
    """The text, if it is one: JSON can hold half of an emoji, which no tokenizer takes."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SampleError("bad_field", f"{name}: no valid Unicode ({error.reason}): {value!r:.50}") from error
    return value


def choice(record: Mapping[str, Any], name: str, known: Sequence[str], default: str) -> Any:
    """A field that is one of some words."""
    value = text(record, name, default)
    if value not in known:
        raise SampleError("bad_field", f"{name}: unknown value {value!r}; {closest(value, known)}")
    return value


def sequence(record: Mapping[str, Any], name: str) -> Sequence[Any]:
    """A field that is a list; empty where absent."""
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise SampleError("bad_field", f"{name}: expected a list, got {value!r:.50}")
    return value


def pairs_of_texts(record: Mapping[str, Any], name: str) -> tuple[tuple[str, str], ...]:
    """A field that is a list of pairs of texts."""
    found = sequence(record, name)
    if any(not (isinstance(pair, list) and [type(word) for word in pair] == [str, str]) for pair in found):
        raise SampleError("bad_field", f"{name}: expected pairs of texts, got {found!r:.50}")
    return tuple((valid(first, name), valid(second, name)) for first, second in found)


def places_in(record: Mapping[str, Any], name: str, num: int) -> tuple[int, ...]:
    """A field that is a list of places in a list of `num`."""
    found = sequence(record, name)
    if any(not (isinstance(place, int) and 0 <= place < num) for place in found):
        raise SampleError("bad_field", f"{name}: expected places in a list of {num}, got {found!r:.50}")
    return tuple(found)


def size_of(image_HW3: np.ndarray) -> str:
    """ "640x480 px"."""
    return f"{image_HW3.shape[1]}x{image_HW3.shape[0]} px"
