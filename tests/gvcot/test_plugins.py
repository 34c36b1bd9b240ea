from __future__ import annotations

import subprocess
import sys

import pytest

from gvcot import plugins
from gvcot.errors import ConfigError


def test_a_short_name_and_its_full_path_are_the_same_part() -> None:
    assert plugins.resolve("reward", "mask_iou") is plugins.resolve("reward", "rewards.localization:MaskIoU")


def test_anything_importable_is_a_part() -> None:
    assert plugins.resolve("reward", "collections:OrderedDict").__name__ == "OrderedDict"


def test_every_built_in_name_resolves() -> None:
    for kind in plugins.TABLES:
        for name in plugins.names(kind):
            assert callable(plugins.resolve(kind, name)), (kind, name)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("reward", "mask_iuo", "unknown reward 'mask_iuo': did you mean 'mask_iou'.*package.module:Class"),
        ("reward", "no_such_package.rewards:Mine", "cannot import reward.*No module named 'no_such_package'"),
        ("reward", "collections:OrderedDcit", "collections has no 'OrderedDcit'; did you mean 'OrderedDict'"),
        ("rewrad", "mask_iou", "unknown kind of plugin 'rewrad': did you mean 'reward'"),
    ],
)
def test_an_unknown_part_is_named_with_the_closest_known(kind: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plugins.resolve(kind, name)


def test_listing_names_imports_no_torch() -> None:
    code = "import sys; from gvcot import plugins; plugins.names('reward'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
