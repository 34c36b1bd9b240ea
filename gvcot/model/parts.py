"""Which parameters of a unified model are trained."""

from __future__ import annotations

from typing import Literal

from torch import nn

from gvcot.model.compute import LoRAConfig
from gvcot.model.unified import UnifiedModel

TrainedPart = Literal["all", "generation", "upper"]
"""All parameters; the generation expert with its latent and time projections; or the upper half of the
decoder's layers (both experts), with the final norms and the projection to latents."""

GENERATION_PARTS = ("_moe_gen", "vae2llm", "llm2vae", "time_embedder")
"""Name parts of the generation expert and its latent and time projections."""


UPPER_ENDS = ("model.norm.", "model.norm_moe_gen.", "llm2vae")
"""Name parts of what follows the decoder's layers, but for the head of words."""


def trainable(model: UnifiedModel, part: TrainedPart) -> dict[str, nn.Parameter]:
    """Parameters of a part, by name; the frozen position tables are never among them."""
    named = {n: p for n, p in model.named_parameters() if "pos_embed" not in n}
    if part == "generation":
        return {n: p for n, p in named.items() if any(piece in n for piece in GENERATION_PARTS)}
    if part == "upper":
        num_layers = len(model.language_model.model.layers)
        pieces = (*(f"model.layers.{i}." for i in range(num_layers // 2, num_layers)), *UPPER_ENDS)
        return {n: p for n, p in named.items() if any(piece in n for piece in pieces)}
    return named


def freeze_but(
    model: UnifiedModel, part: TrainedPart, lora: LoRAConfig | None = None
) -> dict[str, nn.Parameter]:
    """Let gradients reach only the parameters of a part, and return these by name.

    Args:
        lora: the model's adapters, if it has some (`lora.add_lora`): they and the projections of `lora.also`
            are trained, and `part` doesn't count.
    """
    model.requires_grad_(False)
    if lora is None:
        parameters = trainable(model, part)
    else:
        adapted = ((n, p) for n, p in model.named_parameters() if ".lora_" in n or n.startswith(lora.also))
        parameters = dict(adapted)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    return parameters
