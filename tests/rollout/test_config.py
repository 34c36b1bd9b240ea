from __future__ import annotations

import pytest

from gvcot.errors import ConfigError
from rollout.config import RolloutConfig


@pytest.mark.parametrize(("key", "value"), [("num_steps", 0), ("noise_level", -0.1)])
def test_impossible_values_are_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"rollout.{key}: .* got {value}"):
        RolloutConfig(**{key: value})
