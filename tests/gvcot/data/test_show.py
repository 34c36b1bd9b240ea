"""The contact sheet shows source, painted region and target of every sample."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gvcot.data import scenes
from gvcot.data.show import contact_sheet, painted


def test_region_is_painted_at_six_tenths_and_nothing_else_is_touched():
    sample = scenes.generate(0, 0, world=scenes.WorldConfig(tasks=("color",)))
    shown_HW3, mask_HW = painted(sample), sample.mask_HW
    expected = 0.4 * sample.source_HW3[mask_HW] + 0.6 * np.array([255.0, 0.0, 255.0])
    assert np.abs(shown_HW3[mask_HW] - expected).max() <= 1
    assert (shown_HW3[~mask_HW] == sample.source_HW3[~mask_HW]).all()


def test_place_of_an_insertion_has_an_opaque_border():
    sample = scenes.generate(0, 0, world=scenes.WorldConfig(tasks=("insertion",)))
    x0, y0, x1, y1 = sample.regions[0].box
    shown_HW3 = painted(sample)
    assert (shown_HW3[y0, x0:x1] == [255, 0, 255]).all()
    assert (shown_HW3[(y0 + y1) // 2, (x0 + x1) // 2] != [255, 0, 255]).any()


def test_sheet_shows_the_three_images_in_order():
    sample = scenes.generate(0, 2, world=scenes.WorldConfig(tasks=("removal",)))
    sheet = np.asarray(contact_sheet([sample], scale=1))
    assert (sheet[8:72, 8:72] == sample.source_HW3).all()
    assert (sheet[8:72, 80:144] == painted(sample)).all()
    assert (sheet[8:72, 152:216] == sample.target_HW3).all()
    assert (sheet[72:] < 128).any(), "words below the images"


def test_sheet_grows_with_its_samples_and_takes_those_without_a_target():
    samples = scenes.samples("val", range(3))
    one, three = (
        contact_sheet(samples[:1]),
        contact_sheet([*samples[:2], replace(samples[2], target_HW3=None)]),
    )
    assert three.size == (2 * one.width, 2 * one.height)
