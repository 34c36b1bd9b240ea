"""Set-up shared by all tests: one torch thread, few property examples, shape checks of tensor formulas."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# The pure tensor formulas check their annotated shapes at every call while the tests run.
FORMULAS = ["gvcot.model.flow", "rollout.sde", "rl.advantage", "rl.credit", "rl.losses"]
install_import_hook(FORMULAS, "beartype.beartype")

torch.set_num_threads(1)

settings.register_profile("gvcot", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("gvcot")
