"""Low-rank adapters on the decoder (peft), and the plain weights that they amount to.

Imported only where a recipe asks for adapters: peft brings transformers along.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gvcot import distributed, seeds
from gvcot.model.compute import LoRAConfig
from gvcot.model.unified import UnifiedModel
from gvcot.torchvision_cpu import declare_missing_operators

declare_missing_operators()
from peft import LoraConfig, inject_adapter_in_model  # noqa: E402
from peft.tuners.lora import Linear as LoRALinear  # noqa: E402

PROJECTIONS = r"(self_attn\.[qkvo]_proj{suffix}|mlp{suffix}\.(gate|up|down)_proj)"
ADAPTER = "default"
"""peft's name of an adapter that has none."""


def add_lora(model: UnifiedModel, config: LoRAConfig) -> None:
    """Put adapters beside linear layers of the decoder, in place; `reset_lora` then gives them weights, and
    `parts.freeze_but` trains them."""
    suffix = "_moe_gen" if config.experts == "generation" else "(_moe_gen)?"
    layers = rf"language_model\.model\.layers\.\d+\.{PROJECTIONS.format(suffix=suffix)}"
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(layers, n)]
    adapted = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] -- any number will do
        target_modules=names,
    )
    inject_adapter_in_model(adapted, model)


@torch.no_grad()
def reset_lora(model: UnifiedModel, seed: int) -> None:
    """Begin at zero, so that the model computes what it did before: B zero, A as peft's, from a seed."""
    for name, _ in _adapted(model):
        down, up = (model.get_parameter(f"{name}.lora_{part}.{ADAPTER}.weight") for part in "AB")
        bound = 1 / math.sqrt(down.shape[1])
        drawn = torch.empty(down.shape).uniform_(-bound, bound, generator=seeds.generator(seed, "lora", name))
        distributed.copy_full(down, drawn)
        up.zero_()


@contextmanager
def without_lora(model: UnifiedModel) -> Iterator[None]:
    """Inside the block the model computes without its adapters, as it did before them."""
    layers = [layer for _, layer in _adapted(model)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(model: UnifiedModel, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the plain model that computes what `model` with the weights `state` does.

    Args:
        model: with or without adapters; says how they are scaled.
        state: full tensors of such a model, by its own names.
    """
    plain = {name.replace(".base_layer.", "."): w for name, w in state.items() if ".lora_" not in name}
    for name, layer in _adapted(model):
        up, down = (state[f"{name}.lora_{part}.{ADAPTER}.weight"] for part in "BA")
        weight = plain[f"{name}.weight"]
        delta = layer.scaling[ADAPTER] * (up.float() @ down.float())
        plain[f"{name}.weight"] = (weight.float() + delta).to(weight.dtype)
    return plain


def _adapted(model: UnifiedModel) -> Iterator[tuple[str, LoRALinear]]:
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module
