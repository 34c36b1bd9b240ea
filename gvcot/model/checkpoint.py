"""Model weights as safetensors under BAGEL's official names. Strict both ways; nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gvcot.errors import CheckpointError
from gvcot.model.bagel_json import WEIGHTS, read_bagel_dir, read_header, to_bagel_json
from gvcot.model.config import TokenIds, UnifiedConfig
from gvcot.model.unified import UnifiedModel

PATCH_WEIGHT = "vit_model.vision_model.embeddings.patch_embedding.weight"


def save_unified(
    folder: str | Path, model: UnifiedModel, *, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write `config.json`, `llm_config.json`, `vit_config.json` and `ema.safetensors`.

    Args:
        state: full tensors to store in place of the model's own, e.g. gathered from shards.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    main = to_bagel_json(model.config)
    _write_json(folder / "config.json", main)
    for part in ("llm_config", "vit_config"):
        if part in main:
            _write_json(folder / f"{part}.json", main[part])
    tensors = model.state_dict() if state is None else state
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS
    )


def load_unified(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, token_ids: TokenIds | None = None
) -> UnifiedModel:
    """Build the model that a folder describes, with its weights.

    Args:
        dtype: of the parameters, whatever the file holds.
        token_ids: see `UnifiedConfig.from_bagel_dir`.

    Raises:
        CheckpointError: a file is missing, cut short or damaged, or tensors are missing, unexpected or of
            another shape (all of them are listed).
    """
    folder = Path(folder)
    config = read_bagel_dir(folder, token_ids=token_ids)
    with torch.device("meta"):
        model = UnifiedModel(config)
    model.load_state_dict(read_state(folder / WEIGHTS, config, dtype=dtype), strict=True, assign=True)
    return model


def read_state(path: Path, config: UnifiedConfig, *, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a file, checked against the configuration's names and shapes."""
    found = {name: _stored_as(name, shape) for name, shape in read_header(path).items()}
    _check_manifest(path, found, manifest(config))
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _as_matrix(name, file.get_tensor(name)).to(dtype) for name in found}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or download it again") from None


def manifest(config: UnifiedConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model, in order, without allocating any."""
    with torch.device("meta"):
        model = UnifiedModel(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _check_manifest(
    path: Path, found: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshaped = [
        f"{name}: {found[name]} in the file, {shape} in the configuration"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "unexpected": extra, "of another shape": misshaped}
    listed = [
        f"  {len(names)} {what}:\n    " + "\n    ".join(names) for what, names in problems.items() if names
    ]
    if listed:
        raise CheckpointError(
            f"{path} does not belong to the configuration beside it:\n" + "\n".join(listed) + "\n"
            "use the config files that were saved with these weights"
        )


def _stored_as(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Files may hold the patch embedding as a convolution (out, 3, p, p); it is used as (out, p*p*3)."""
    is_convolution = name == PATCH_WEIGHT and len(shape) == 4
    return (shape[0], shape[1] * shape[2] * shape[3]) if is_convolution else shape


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    if name == PATCH_WEIGHT and tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1).flatten(1).contiguous()
    return tensor


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
