"""Policy losses. Each is one pure function: tensors in, (elementwise loss, metrics) out.

The table maps the names that recipes use to "module:function"; nothing is imported before it is needed.
"""

from __future__ import annotations

LOSSES: dict[str, str] = {
    "grpo_clip": "rl.losses.grpo_clip:grpo_clip",
    "grpo_guard": "rl.losses.grpo_guard:grpo_guard",
    "flow_dppo": "rl.losses.flow_dppo:flow_dppo",
}
