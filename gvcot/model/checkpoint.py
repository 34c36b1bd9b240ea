"""Weights as safetensors under BAGEL's official names. Strict both ways; nothing is unpickled.

Shapes are compared before anything is allocated; then tensors are read one by one, each cast as it comes,
so that loading takes the memory of the model and of one tensor more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gvcot.errors import CheckpointError, ConfigError, ResourceError
from gvcot.model.bagel_json import read_bagel_dir, to_bagel_json
from gvcot.model.codec import Autoencoder, TinyAE
from gvcot.model.config import CodecConfig, TokenIds, UnifiedConfig
from gvcot.model.flux_ae import FluxAE
from gvcot.model.unified import UnifiedModel
from gvcot.model.weight_files import (
    CODEC_FILE,
    WEIGHTS,
    Shape,
    check_names,
    find_weights,
    read_header,
    read_headers,
)

PATCH_WEIGHT = "vit_model.vision_model.embeddings.patch_embedding.weight"

CODECS: dict[str, type[Autoencoder]] = {"tiny": TinyAE, "flux": FluxAE}


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
    _save(model.state_dict() if state is None else state, folder / WEIGHTS)


def load_unified(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    token_ids: TokenIds | None = None,
) -> UnifiedModel:
    """Build the model that a folder describes, with its weights.

    Args:
        dtype: of the parameters, whatever the files hold; None: as they hold them.
        device: where the parameters go, one by one.
        token_ids: see `UnifiedConfig.from_bagel_dir`.

    Raises:
        CheckpointError: a file is missing, cut short or damaged, or tensors are missing, unexpected or of
            another shape (all of them are listed).
    """
    folder = Path(folder)
    config = read_bagel_dir(folder, token_ids=token_ids)
    with torch.device("meta"):
        model = UnifiedModel(config)
    state = dict(read_tensors(folder, config, dtype=dtype, device=device))
    model.load_state_dict(state, strict=True, assign=True)
    return model


def read_tensors(
    folder: Path,
    config: UnifiedConfig,
    *,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors one by one, file by file, after all names and shapes have been compared.

    Raises:
        CheckpointError: as `load_unified`.
    """
    files = find_weights(folder)
    if not files:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not exist, nor model.safetensors or an index of shards; expected the "
            "model's weights there"
        )
    headers = read_headers(files)
    found = {name: _stored_as(name, shape) for header in headers.values() for name, shape in header.items()}
    where = files[0] if len(files) == 1 else folder
    check_names(where, "the model that the configuration beside it describes", found, manifest(config))
    for path, header in headers.items():
        for name, tensor in _read(path, header):
            yield name, _as_matrix(name, tensor).to(device=device, dtype=dtype)


def manifest(config: UnifiedConfig) -> dict[str, Shape]:
    """Name and shape of every tensor of a model, in order, without allocating any."""
    with torch.device("meta"):
        model = UnifiedModel(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def build_codec(config: CodecConfig) -> Autoencoder:
    """A codec with random weights.

    Raises:
        ConfigError: no codec has this kind or geometry.
    """
    if config.kind not in CODECS or config.down != Autoencoder.down:
        raise ConfigError(
            f"no codec of kind {config.kind!r} at 1/{config.down} of the resolution; kinds: "
            f"{', '.join(CODECS)}, all at 1/{Autoencoder.down}"
        )
    return CODECS[config.kind](z=config.z, width=config.width)


def save_codec(codec: Autoencoder, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the codec's weights to `folder/ae.safetensors`.

    Args:
        dtype: on disk; None: as they are.
    """
    _save({name: tensor.to(dtype) for name, tensor in codec.state_dict().items()}, folder / CODEC_FILE)


def load_codec(
    folder: Path, config: CodecConfig, *, dtype: torch.dtype | None = torch.float32
) -> Autoencoder:
    """Read `folder/ae.safetensors`, strictly; nothing in it is to be trained.

    Args:
        dtype: of the weights, whatever the file holds; None: as it holds them.

    Raises:
        CheckpointError: the file is absent, truncated, or of a codec with other sizes.
    """
    path = folder / CODEC_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist; expected the codec that the model was trained with: copy it there (a "
            "small one is trained with `gvcot sft tiny-codec`)"
        )
    with torch.device("meta"):
        codec = build_codec(config)
    header = read_header(path)
    expected = {name: tuple(tensor.shape) for name, tensor in codec.state_dict().items()}
    what = f"a {type(codec).__name__} with z={config.z}, width={config.width}"
    check_names(path, what, header, expected)
    state = {name: tensor.to(dtype) for name, tensor in _read(path, header)}
    codec.load_state_dict(state, strict=True, assign=True)
    return codec.requires_grad_(False)


def _read(path: Path, names: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            for name in names:
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy or download it again") from None
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        raise ResourceError(
            f"this machine has no room to map {path.stat().st_size / 1e9:.1f} GB of {path}: use one with "
            "more memory"
        ) from error


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(state, path, metadata={"format": "pt"})


def _stored_as(name: str, shape: Shape) -> Shape:
    """Files may hold the patch embedding as a convolution (out, 3, p, p); it is used as (out, p*p*3)."""
    is_convolution = name == PATCH_WEIGHT and len(shape) == 4
    return (shape[0], shape[1] * shape[2] * shape[3]) if is_convolution else shape


def _as_matrix(name: str, tensor: Tensor) -> Tensor:
    if name == PATCH_WEIGHT and tensor.ndim == 4:
        return tensor.permute(0, 2, 3, 1).flatten(1).contiguous()
    return tensor


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
