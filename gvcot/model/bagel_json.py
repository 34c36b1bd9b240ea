"""BAGEL's configuration files, and the corrections a reader has to apply. Does not import torch.

A BAGEL folder holds `config.json`, `llm_config.json`, `vit_config.json` and `ema.safetensors`. The files
are read as BAGEL's own loader reads them: query/key norm is always on and the head is never tied; the
ViT has one layer fewer than `vit_config.json` says, and no rotary embedding; the sides of the position
tables follow the stored tables where weights are present, because `max_latent_size` can be stale.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gvcot.errors import CheckpointError
from gvcot.model.config import QWEN2_TOKEN_IDS, CodecConfig, LLMConfig, TokenIds, UnifiedConfig, ViTConfig

WEIGHTS = "ema.safetensors"
LATENT_TABLE, VIT_TABLE = "latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file.

    Raises:
        CheckpointError: the file is missing, cut short, or not safetensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; expected the model's weights there")
    size = path.stat().st_size
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        text = file.read(header_size) if header_size <= size - 8 else b""
    try:
        header = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        header = None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path} is not a safetensors file or is cut short; copy or download it again")
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    expected = 8 + header_size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    if size != expected:
        raise CheckpointError(
            f"{path} has {size} bytes, its header says {expected}: it is cut short or damaged; "
            "copy or download it again"
        )
    return {name: tuple(entry["shape"]) for name, entry in tensors.items()}


def read_bagel_dir(folder: Path, *, token_ids: TokenIds | None = None) -> UnifiedConfig:
    """The configuration of a checkpoint folder.

    Args:
        token_ids: control tokens; by default those that `save_unified` recorded, or Qwen2.5's where the
            vocabulary is large enough for them.

    Raises:
        CheckpointError: a file is missing or incomplete, or the control tokens are unknown.
    """
    main = _read_json(folder / "config.json")
    llm = _part(folder, main, "llm_config")
    vit = _part(folder, main, "vit_config") if main.get("visual_und", True) else None
    ours = main.get("gvcot", {})
    weights = folder / WEIGHTS
    shapes = read_header(weights) if weights.exists() else {}
    try:
        return UnifiedConfig(
            llm=_llm(llm),
            vit=None
            if vit is None
            else _vit(vit, _side(shapes, VIT_TABLE, main["vit_max_num_patch_per_side"])),
            codec=CodecConfig(
                z=main["vae_config"]["z_channels"],
                down=main["vae_config"]["downsample"],
                **ours.get("codec", {"kind": "flux"}),
            ),
            latent_patch=main["latent_patch_size"],
            max_latent=_side(shapes, LATENT_TABLE, main["max_latent_size"]),
            shift=main.get("timestep_shift", 1.0),
            token_ids=token_ids or _token_ids(folder, ours, llm["vocab_size"]),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the configuration in {folder} lacks {error}; restore the original files"
        ) from None


def to_bagel_json(config: UnifiedConfig) -> dict[str, Any]:
    """`config.json` in BAGEL's format; what BAGEL has no word for is kept under the key "gvcot"."""
    vit = None if config.vit is None else _vit_json(config.vit)
    ids = config.token_ids
    return {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "visual_gen": True,
        "visual_und": vit is not None,
        "llm_config": _llm_json(config),
        **(
            {}
            if vit is None or config.vit is None
            else {
                "vit_config": vit,
                "vit_max_num_patch_per_side": config.vit.max_side,
            }
        ),
        "vae_config": {"z_channels": config.codec.z, "downsample": config.codec.down},
        "latent_patch_size": config.latent_patch,
        "max_latent_size": config.max_latent,
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "timestep_shift": config.shift,
        "gvcot": {
            "token_ids": {"bos": ids.bos, "eos": ids.eos, "boi": ids.boi, "eoi": ids.eoi},
            "codec": {"kind": config.codec.kind, "width": config.codec.width},
        },
    }


def _llm(values: dict[str, Any]) -> LLMConfig:
    return LLMConfig(
        hidden=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        kv_heads=values["num_key_value_heads"],
        mlp=values["intermediate_size"],
        vocab=values["vocab_size"],
        rope_theta=values.get("rope_theta", 1e6),
        rms_eps=values.get("rms_norm_eps", 1e-6),
    )


def _llm_json(config: UnifiedConfig) -> dict[str, Any]:
    llm = config.llm
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "bos_token_id": config.token_ids.bos,
        "eos_token_id": config.token_ids.eos,
        "hidden_act": "silu",
        "hidden_size": llm.hidden,
        "intermediate_size": llm.mlp,
        "num_attention_heads": llm.heads,
        "num_hidden_layers": llm.layers,
        "num_key_value_heads": llm.kv_heads,
        "qk_norm": True,
        "rms_norm_eps": llm.rms_eps,
        "rope_theta": llm.rope_theta,
        "tie_word_embeddings": False,
        "vocab_size": llm.vocab,
    }


def _vit(values: dict[str, Any], max_side: int) -> ViTConfig:
    return ViTConfig(
        hidden=values["hidden_size"],
        layers=values["num_hidden_layers"] - 1,
        heads=values["num_attention_heads"],
        mlp=values["intermediate_size"],
        patch=values["patch_size"],
        max_side=max_side,
        ln_eps=values.get("layer_norm_eps", 1e-6),
    )


def _vit_json(vit: ViTConfig) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": vit.hidden,
        "image_size": vit.max_side * vit.patch,
        "intermediate_size": vit.mlp,
        "layer_norm_eps": vit.ln_eps,
        "num_attention_heads": vit.heads,
        "num_channels": 3,
        "num_hidden_layers": vit.layers + 1,
        "patch_size": vit.patch,
        "rope": False,
    }


def _token_ids(folder: Path, ours: dict[str, Any], vocab: int) -> TokenIds:
    if "token_ids" in ours:
        return TokenIds(**ours["token_ids"])
    if vocab > QWEN2_TOKEN_IDS.eoi:
        return QWEN2_TOKEN_IDS
    raise CheckpointError(
        f"{folder} does not record its control tokens, and its vocabulary of {vocab} is not Qwen2.5's; "
        "pass token_ids=TokenIds(bos=..., eos=..., boi=..., eoi=...)"
    )


def _side(shapes: dict[str, tuple[int, ...]], name: str, stated: int) -> int:
    return math.isqrt(shapes[name][0]) if name in shapes else stated


def _part(folder: Path, main: dict[str, Any], name: str) -> dict[str, Any]:
    """A part's own file, which BAGEL's loader reads, before the copy inside `config.json`."""
    path = folder / f"{name}.json"
    if not path.exists() and name in main:
        return main[name]
    return _read_json(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; a checkpoint folder in BAGEL's format has it"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore the original file") from None
