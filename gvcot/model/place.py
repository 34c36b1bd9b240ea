"""From a model as it was loaded to one that can be trained: adapters, shards, device, weights.

In an order in which no worker ever holds more than its share of a sharded model.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from gvcot import distributed
from gvcot.model.checkpoint import read_tensors
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.unified import UnifiedModel


def place(
    model: UnifiedModel,
    *,
    device: str,
    compute: ComputeConfig,
    lora: LoRAConfig | None = None,
    seed: int = 0,
    mesh: DeviceMesh | None = None,
    folder: Path | None = None,
) -> None:
    """Make a model ready, in place. *Collective* where it is sharded.

    Args:
        model: with weights, or on the meta device.
        device: "cpu" or "cuda".
        lora, seed: of its adapters; None: none.
        mesh: the workers that it is sharded over; None: each has all of it.
        folder: where the weights of a model on the meta device are. Every worker reads them tensor by tensor
            and keeps its part.
    """
    empty = model.device.type == "meta"
    if not empty:
        model.to(device)
    model.compute_as(compute)
    if lora is not None:
        from gvcot.model.lora import add_lora

        add_lora(model, lora)
    if mesh is not None:
        dtype = None if compute.dtype == "float32" else torch.bfloat16
        distributed.shard(model, mesh, model.language_model.model.layers, compute_dtype=dtype)
        model.sharded = mesh.size() > 1
    if empty:
        assert folder is not None, "a model on the meta device needs a folder with its weights"
        model.to_empty(device=device)
        load_weights(model, folder)
    if lora is not None:
        from gvcot.model.lora import reset_lora

        reset_lora(model, seed)


@torch.no_grad()
def load_weights(model: UnifiedModel, folder: Path) -> None:
    """Read a folder's weights into a plain or sharded model, with or without adapters.

    Raises:
        CheckpointError: see `gvcot.model.checkpoint.read_tensors`.
    """
    own = {name.replace(".base_layer.", "."): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in read_tensors(folder, model.config, dtype=None):
        distributed.copy_full(own[name], tensor)
