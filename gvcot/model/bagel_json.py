"""BAGEL's configuration files, and the corrections a reader has to apply. Does not import torch.

A BAGEL folder holds `config.json`, `llm_config.json`, `vit_config.json`, `ema.safetensors` (or shards) and
`ae.safetensors`. The files are read as BAGEL's own loader reads them: query/key norm is always on and the
head is never tied; the ViT has one layer fewer than `vit_config.json` says, and no rotary embedding. Where
weights are present, the sides of the position tables and the codec's width follow what is stored, because
`max_latent_size` can be stale. What `config.json` leaves out is as in BAGEL, whose loader does not read it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gvcot.errors import CheckpointError
from gvcot.model.config import (
    BAGEL_RESIZE,
    BAGEL_VIT_RESIZE,
    QWEN2_TOKEN_IDS,
    CodecConfig,
    LLMConfig,
    ResizeConfig,
    TokenIds,
    UnifiedConfig,
    ViTConfig,
)
from gvcot.model.weight_files import CODEC_FILE, Shape, find_weights, read_header, read_headers

LATENT_TABLE, VIT_TABLE = "latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"
CODEC_INPUT = "encoder.conv_in.weight"
"""Of BAGEL's codec; as many rows as it has base channels."""

FLUX_WIDTH = 128
"""Base channels of the published codec."""

DEFAULTS: dict[str, Any] = {
    "latent_patch_size": 2,
    "max_latent_size": 64,
    "vit_max_num_patch_per_side": 70,
    "timestep_shift": 1.0,
    "vae_config": {},
}
"""What BAGEL's loader sets, whatever `config.json` says."""

SUPPORTED: dict[str, dict[str, Any]] = {
    "llm_config": {"hidden_act": "silu", "use_sliding_window": False, "rope_scaling": None},
    "vit_config": {"hidden_act": "gelu_pytorch_tanh", "num_channels": 3},
}
"""What this model computes, of the settings that would change what it computes."""


def read_bagel_dir(folder: Path, *, token_ids: TokenIds | None = None) -> UnifiedConfig:
    """The configuration of a checkpoint folder.

    Args:
        token_ids: control tokens; by default those that `save_unified` recorded, or Qwen2.5's where the
            vocabulary is large enough for them.

    Raises:
        CheckpointError: a file is missing or incomplete, or the control tokens are unknown.
    """
    main = DEFAULTS | _read_json(folder / "config.json")
    llm = _part(folder, main, "llm_config")
    vit = _part(folder, main, "vit_config") if main.get("visual_und", True) else None
    headers = read_headers(find_weights(folder))
    shapes = {name: shape for header in headers.values() for name, shape in header.items()}
    vit_side = _side(shapes, VIT_TABLE, main["vit_max_num_patch_per_side"])
    try:
        config = UnifiedConfig(
            llm=_llm(llm),
            vit=None if vit is None else _vit(vit, vit_side),
            codec=_codec(folder, main),
            latent_patch=main["latent_patch_size"],
            max_latent=_side(shapes, LATENT_TABLE, main["max_latent_size"]),
            shift=main["timestep_shift"],
            token_ids=token_ids or _token_ids(folder, llm["vocab_size"]),
        )
    except KeyError as error:
        raise CheckpointError(
            f"the configuration in {folder} lacks {error}; restore the original files"
        ) from None
    return _with_resize(config, main)


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
            "resize": _resize_json(config.resize),
            "vit_resize": None if config.vit is None else _resize_json(config.vit.resize),
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


def _codec(folder: Path, main: dict[str, Any]) -> CodecConfig:
    stored = main.get("gvcot", {}).get("codec", {"kind": "flux", "width": FLUX_WIDTH})
    if stored["kind"] == "flux" and (folder / CODEC_FILE).is_file():
        shape = read_header(folder / CODEC_FILE).get(CODEC_INPUT)
        stored = stored if shape is None else stored | {"width": shape[0]}
    geometry = main["vae_config"]
    return CodecConfig(z=geometry.get("z_channels", 16), down=geometry.get("downsample", 8), **stored)


def _with_resize(config: UnifiedConfig, main: dict[str, Any]) -> UnifiedConfig:
    """How images are made to fit: as recorded, or as BAGEL does it, within what the tables reach."""
    ours, vit = main.get("gvcot"), config.vit
    if ours is None:
        resize = _within(BAGEL_RESIZE, config.max_latent * config.token_px)
        vit_resize = None if vit is None else _within(BAGEL_VIT_RESIZE, vit.max_side * vit.patch)
    else:
        resize, vit_resize = (
            None if ours.get(key) is None else ResizeConfig(**ours[key]) for key in ("resize", "vit_resize")
        )
    vit = None if vit is None else replace(vit, resize=vit_resize)
    return replace(config, resize=resize, vit=vit)


def _within(resize: ResizeConfig, reach: int) -> ResizeConfig:
    return ResizeConfig(longest=min(resize.longest, reach), shortest=min(resize.shortest, reach))


def _resize_json(resize: ResizeConfig | None) -> dict[str, int] | None:
    return None if resize is None else asdict(resize)


def recorded_token_ids(folder: Path, vocab: int) -> TokenIds | None:
    """The control tokens that `save_unified` recorded, or Qwen2.5's for a vocabulary that has them; None
    where nothing tells."""
    ours = _read_json(folder / "config.json").get("gvcot", {})
    if "token_ids" in ours:
        return TokenIds(**ours["token_ids"])
    return QWEN2_TOKEN_IDS if vocab > QWEN2_TOKEN_IDS.eoi else None


def _token_ids(folder: Path, vocab: int) -> TokenIds:
    recorded = recorded_token_ids(folder, vocab)
    if recorded is None:
        raise CheckpointError(
            f"{folder} does not record its control tokens, and its vocabulary of {vocab} is not Qwen2.5's; "
            "pass token_ids=TokenIds(bos=..., eos=..., boi=..., eoi=...)"
        )
    return recorded


def _side(shapes: dict[str, Shape], name: str, stated: int) -> int:
    return math.isqrt(shapes[name][0]) if name in shapes else stated


def _part(folder: Path, main: dict[str, Any], name: str) -> dict[str, Any]:
    """A part's own file, which BAGEL's loader reads, before the copy inside `config.json`."""
    path = folder / f"{name}.json"
    values = main[name] if not path.exists() and name in main else _read_json(path)
    wrong = {k: values[k] for k, known in SUPPORTED[name].items() if k in values and values[k] != known}
    if wrong:
        raise CheckpointError(
            f"{path} asks for {wrong}, this model computes { {k: SUPPORTED[name][k] for k in wrong} }; "
            "these weights are of another architecture"
        )
    return values


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; a checkpoint folder in BAGEL's format has it"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); restore the original file") from None
