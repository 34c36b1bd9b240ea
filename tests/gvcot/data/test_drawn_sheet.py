"""The sheet of what a model drew."""

from __future__ import annotations

import numpy as np

from gvcot.data import scenes
from gvcot.data.show import drawn_sheet


def test_the_drawn_images_stand_between_source_and_target() -> None:
    samples = scenes.samples("val", range(2))
    drawn = {
        name: np.full((2, 64, 64, 3), value, np.uint8) for name, value in (("x_cot", 10), ("x_edit", 200))
    }
    sheet = np.asarray(drawn_sheet(samples, drawn, scale=1, columns=1))
    columns = [sheet[8:72, 8 + 72 * i : 72 + 72 * i] for i in range(4)]
    assert (columns[0] == samples[0].source_HW3).all()
    assert (columns[1] == 10).all()
    assert (columns[2] == 200).all()
    assert (columns[3] == samples[0].target_HW3).all()
