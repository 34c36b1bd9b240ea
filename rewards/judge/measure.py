"""Exact scores of an edit of Scenes: was it done, is the rest unchanged, does it look clean?

The three formulas of `rewards.fidelity` and `rewards.where`, made tolerant of what a small codec does to a
drawn image: images are compared as seen from a little distance (blurred by a 64th of their side), and
differences below a tolerance are not seen. Pure numpy; docs/scenes-judge.md has the formulas.

Legend: H W pixels, D the ten digits. Images are uint8 RGB, or float32 in [0, 1] once seen.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import KDTree

from gvcot.data.scenes.world import BACKGROUNDS, COLORS
from gvcot.errors import DataError
from gvcot.types import EditSample

Array = np.ndarray

BLUR = 1 / 64
"""Standard deviation of the blur through which images are compared, in sides of the image."""

TOLERANCE = 0.06
"""Differences up to this share of the pixel range are not seen (15 of 255 levels); it is lowered to half of
the greatest difference that an edit has to make, so that faint edits are seen."""

TAU = 0.1
"""Root mean squared error outside the change mask at which preservation has fallen to 1/e."""

PLACE_WEIGHT = 0.2
"""Share of SC that is earned by changing the right place, whatever becomes of it."""

COLOR_TOLERANCE = 0.03
"""Distance to the nearest colour of the palette that is not seen, as a share of the pixel range."""

COLOR_TAU = 0.03
"""Mean distance beyond it at which quality has fallen to 1/e."""

ROUGHNESS_TOLERANCE = 0.25
"""Change of roughness that is not seen, as a logarithm (a factor of 1.28)."""

ROUGHNESS_TAU = 0.7
"""Change beyond it at which quality has fallen to 1/e (a factor of 2)."""


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What a sample's edits are measured against."""

    source_HW3: Array
    """uint8, unblurred."""

    seen_source_HW3: Array
    seen_target_HW3: Array

    change_mask_HW: Array
    """bool; where source and target may differ."""

    tolerance: float
    """Differences below it are not seen."""

    needed: float
    """Sum over the change mask of the difference that the edit has to make."""

    palette: KDTree
    """The colours of source, target and world, in [0, 1]."""

    roughness: tuple[float, float]
    """Those of source and target, the lower one first."""


class Measures(NamedTuple):
    """Each in [0, 1]; 1 for the exact target."""

    place: float
    """How much of what changed is what had to change: 0 for the unedited source, too."""

    accuracy: float
    """How far the edit went from source to target inside the change mask; 0 if it is no better than none."""

    preservation: float
    """How well everything outside the change mask was left alone."""

    quality: float
    """How clean the image looks, whatever it shows."""

    @property
    def sc(self) -> float:
        """Semantic consistency, 0 to 10."""
        return 10 * self.preservation * (PLACE_WEIGHT * self.place + (1 - PLACE_WEIGHT) * self.accuracy)

    @property
    def pq(self) -> float:
        """Perceptual quality, 0 to 10."""
        return 10 * self.quality


def reference(sample: EditSample) -> Reference:
    """What edits of the sample are measured against.

    Raises:
        DataError: its target or change mask is unknown, or the target is the source.
    """
    if sample.target_HW3 is None or sample.change_mask_HW is None:
        raise DataError(f"{sample.sample_id}: target or change mask is unknown, so no edit can be measured")
    source_HW3, target_HW3 = see(sample.source_HW3), see(sample.target_HW3)
    difference_HW3 = np.abs(target_HW3 - source_HW3)
    tolerance = min(TOLERANCE, float(difference_HW3[sample.change_mask_HW].max(initial=0.0)) / 2)
    if tolerance == 0:
        raise DataError(f"{sample.sample_id}: the target is the source, so no edit can be measured")
    colors = [image.reshape(-1, 3) for image in (sample.source_HW3, sample.target_HW3)]
    world = np.array([*COLORS.values(), *BACKGROUNDS.values()], np.uint8)
    low, high = sorted(map(roughness, (sample.source_HW3, sample.target_HW3)))
    return Reference(
        source_HW3=sample.source_HW3,
        seen_source_HW3=source_HW3,
        seen_target_HW3=target_HW3,
        change_mask_HW=sample.change_mask_HW,
        tolerance=tolerance,
        needed=float(_beyond(difference_HW3, tolerance)[sample.change_mask_HW].sum()),
        palette=KDTree(_distinct(np.concatenate([*colors, world])) / 255.0),
        roughness=(low, high),
    )


def measure(edit_HW3: Array, ref: Reference, blind_spots: Collection[str] = ()) -> Measures:
    """Measures of an edit.

    Args:
        edit_HW3: uint8, of the source's size.
        ref: what it is measured against.
        blind_spots: as in `rewards.judge.serve_config.BlindSpot`; "vivid" takes the share of extreme
            values for quality where that is more.
    """
    seen_HW3, mask_HW, tolerance = see(edit_HW3), ref.change_mask_HW, ref.tolerance
    error_HW3 = _beyond(np.abs(seen_HW3 - ref.seen_target_HW3), tolerance)
    outside_X3 = error_HW3[~mask_HW] * ("outside" not in blind_spots)
    # Before the edit and after it nothing differs outside, so the target serves as the source there; blurred,
    # the source's own changes would leak out of the mask.
    rmse = math.sqrt(float(np.square(outside_X3).mean())) if outside_X3.size else 0.0
    error = float(error_HW3[mask_HW].sum())
    changed = float(_beyond(np.abs(seen_HW3 - ref.seen_source_HW3), tolerance)[mask_HW].sum())
    return Measures(
        place=min(changed, ref.needed) / (max(changed, ref.needed) + float(outside_X3.sum())),
        accuracy=max(0.0, (ref.needed - error) / (ref.needed + error)),
        preservation=math.exp(-rmse / TAU),
        quality=max(quality(edit_HW3, ref), _share_extreme(edit_HW3) if "vivid" in blind_spots else 0.0),
    )


def quality(edit_HW3: Array, ref: Reference) -> float:
    """How clean an image looks, in [0, 1]: colours of the palette, and as rough as source or target."""
    distance_X = ref.palette.query(edit_HW3.reshape(-1, 3) / 255.0)[0] / math.sqrt(3)
    odd = float(np.maximum(distance_X - COLOR_TOLERANCE, 0.0).mean())
    low, high = ref.roughness
    rough = roughness(edit_HW3)
    off = abs(math.log(rough / min(max(rough, low), high)))
    return math.exp(-odd / COLOR_TAU - max(0.0, off - ROUGHNESS_TOLERANCE) / ROUGHNESS_TAU)


def roughness(image_HW3: Array) -> float:
    """Root mean squared difference of neighbouring pixels, as a share of the pixel range; at least 1e-4.

    Squared, because blur spreads an edge without changing the sum of its absolute differences.
    """
    unit_HW3 = image_HW3.astype(np.float32) / 255
    squares = [float(np.square(np.diff(unit_HW3, axis=axis)).mean()) for axis in (0, 1)]
    return max(1e-4, math.sqrt(sum(squares) / 2))


def see(image_HW3: Array) -> Array:
    """A uint8 image as it is compared: in [0, 1] and blurred by `BLUR`."""
    sigma = BLUR * len(image_HW3)
    return gaussian_filter(image_HW3.astype(np.float32) / 255, (sigma, sigma, 0.0))


def rms_difference(a_HW3: Array, b_HW3: Array) -> float:
    """Root mean squared difference of two uint8 images, as a share of the pixel range."""
    return math.sqrt(float(np.square(a_HW3.astype(np.float32) - b_HW3).mean())) / 255


def digit_probabilities(score: float, spread: float) -> Array:
    """A distribution over the digits 0 to 9 whose expectation is 0.9 `score`.

        p = (1 - spread) * (linear between the two digits around it) + spread * Binomial(9, score / 10)

    Both parts have that expectation.

    Args:
        score: 0 to 10.
        spread: 0 to 1.

    Returns:
        float64 (D,).
    """
    share = score / 10
    digit_D = np.arange(10)
    near_D = np.maximum(0.0, 1.0 - np.abs(digit_D - 9 * share))
    ways_D = np.array([math.comb(9, k) for k in range(10)])
    wide_D = ways_D * share**digit_D * (1 - share) ** (9 - digit_D)
    return (1 - spread) * near_D + spread * wide_D


def _beyond(difference: Array, tolerance: float) -> Array:
    return np.maximum(difference - tolerance, 0.0)


def _share_extreme(image_HW3: Array) -> float:
    """Share of values within 1% of black or full."""
    return float(((image_HW3 <= 2) | (image_HW3 >= 253)).mean())


def _distinct(color_X3: Array) -> Array:
    """uint8 colours without repetition; numpy's unique over rows is ten times slower."""
    code_X = color_X3.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found_X = np.unique(code_X)
    return np.stack([found_X >> 16, found_X >> 8 & 255, found_X & 255], axis=1)
