"""The model's configuration: one dataclass family from 1 M to 7 B parameters. Does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from gvcot.errors import ConfigError, closest

CodecKind = Literal["tiny", "flux", "none"]


MAX_PIXELS = 14 * 14 * 9 * 1024
"""No image gets larger than this, whatever its sides may be (BAGEL's bound)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizeConfig:
    """How an image of any size is made to fit: its aspect ratio is kept as far as whole tokens allow.

    Example:
        ResizeConfig(longest=1024, shortest=512).fit(1200, 1600, 16)    # (768, 1024)
    """

    longest: int
    """Pixels of the longer side at most; larger images shrink."""

    shortest: int = 0
    """Pixels of the shorter side at least; smaller images grow, unless `longest` or MAX_PIXELS forbids it."""

    def __post_init__(self) -> None:
        if not 0 <= self.shortest <= self.longest:
            raise ConfigError(
                f"resize: expected 0 <= shortest <= longest; got {self.shortest} and {self.longest}"
            )

    def fit(self, height: int, width: int, stride: int) -> tuple[int, int]:
        """(height, width) after resizing, both multiples of `stride`. These are BAGEL's steps, one by one: a
        long and thin image is scaled up to three times, and rounded after each."""
        scale = max(min(self.longest / max(height, width), 1.0), self.shortest / min(height, width))
        size = _scaled((height, width), scale, stride)
        num_pixels = size[0] * size[1]
        if num_pixels > MAX_PIXELS:
            size = _scaled(size, MAX_PIXELS / num_pixels, stride)
        if max(size) > self.longest:
            size = _scaled(size, self.longest / max(size), stride)
        return size


def _scaled(size: tuple[int, int], scale: float, stride: int) -> tuple[int, int]:
    height, width = (max(stride, round(round(side * scale) / stride) * stride) for side in size)
    return height, width


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesConfig:
    """What a recipe says of image sizes; it goes into the model folders that a run writes."""

    latent: ResizeConfig | None = None
    """Of images that are encoded as latents; None: as the model folder says."""

    vit: ResizeConfig | None = None
    """Of images that are shown to the ViT; None: as the model folder says."""


BAGEL_RESIZE = ResizeConfig(longest=1024, shortest=512)
"""Of the images that BAGEL encodes as latents."""

BAGEL_VIT_RESIZE = ResizeConfig(longest=980, shortest=224)
"""Of the images that BAGEL looks at through its ViT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenIds:
    """The control tokens that the sequence builder adds."""

    bos: int
    """Opens every text segment."""

    eos: int
    """Closes every text segment."""

    boi: int
    """Opens every image block."""

    eoi: int
    """Closes every image block."""


QWEN2_TOKEN_IDS = TokenIds(bos=151644, eos=151645, boi=151652, eoi=151653)
"""<|im_start|>, <|im_end|>, <|vision_start|>, <|vision_end|> of the Qwen2.5 tokenizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LLMConfig:
    """The Qwen2-style decoder; every layer holds two experts of these sizes."""

    hidden: int
    """Width of the residual stream."""

    layers: int
    """Number of decoder layers."""

    heads: int
    """Query heads; `hidden / heads` is the head size and must be even (rotary embedding)."""

    kv_heads: int
    """Key-value heads; divides `heads`."""

    mlp: int
    """Inner width of the SwiGLU MLP."""

    vocab: int
    """Rows of the token embedding and of the (untied) output head."""

    rope_theta: float = 1e6
    """Base of the rotary embedding."""

    rms_eps: float = 1e-6
    """Epsilon of every RMSNorm."""

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.head_dim % 2:
            raise ConfigError(
                f"hidden={self.hidden} gives heads={self.heads} no even head size; "
                "choose hidden = heads * an even number"
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.hidden % 4:
            raise ConfigError(f"hidden={self.hidden} must be a multiple of 4 (2-D sin-cos tables)")

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """The SigLIP encoder through which the model looks at images."""

    hidden: int
    """Width of the encoder."""

    layers: int
    """Layers that are built. BAGEL's `vit_config.json` counts one more, which is never used."""

    heads: int
    """Attention heads; divides `hidden`."""

    mlp: int
    """Inner width of the MLP."""

    patch: int
    """Side of a patch in pixels."""

    max_side: int
    """Most patches per image side; the position tables have `max_side ** 2` rows."""

    ln_eps: float = 1e-6
    """Epsilon of every LayerNorm."""

    resize: ResizeConfig | None = None
    """How images are made to fit; None: they shrink where the position tables ask for it."""

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise ConfigError(f"ViT hidden={self.hidden} must be a multiple of heads={self.heads}")
        _check_reach(self.resize, self.max_side * self.patch, "ViT")

    def fit(self, height_px: int, width_px: int) -> tuple[int, int]:
        """(height, width) at which the ViT is shown an image, in whole patches."""
        rule = self.resize or ResizeConfig(longest=self.max_side * self.patch)
        return rule.fit(height_px, width_px, self.patch)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecConfig:
    """The image autoencoder that the latents come from."""

    kind: CodecKind
    """"tiny" (ours), "flux" (BAGEL's), or "none" when latents are supplied from outside."""

    z: int = 16
    """Latent channels."""

    down: int = 8
    """Pixels per latent along one side."""

    width: int = 32
    """Base channels: of the tiny codec at 1/4 of the resolution, of the flux codec at full resolution (128 in
    BAGEL; a multiple of 32)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnifiedConfig:
    """Everything that shapes a `UnifiedModel`.

    Example:
        config = UnifiedConfig.tiny(vocab=200, token_ids=TokenIds(bos=1, eos=2, boi=3, eoi=4))
        config.latent_grid(64, 64)      # (4, 4): 16 latent tokens of config.latent_dim == 64 values
    """

    llm: LLMConfig
    """The decoder."""

    vit: ViTConfig | None
    """The image encoder; None for a model that sees images only as latents."""

    codec: CodecConfig
    """The autoencoder's geometry."""

    latent_patch: int = 2
    """Latents per token along one side."""

    max_latent: int
    """Most latent tokens per image side; the position table has `max_latent ** 2` rows."""

    shift: float = 1.0
    """Timestep shift of training, s in s*t / (1 + (s - 1)*t)."""

    token_ids: TokenIds
    """Control tokens of the tokenizer."""

    resize: ResizeConfig | None = None
    """How images of any size are made to fit the codec; None: they are taken as they are, or refused."""

    def __post_init__(self) -> None:
        _check_reach(self.resize, self.max_latent * self.token_px, "latent")
        ids = dataclasses.astuple(self.token_ids)
        if max(ids) >= self.llm.vocab:
            raise ConfigError(f"control token ids {ids} do not fit a vocabulary of {self.llm.vocab}")
        if len(set(ids)) != len(ids):
            raise ConfigError(f"control token ids {ids} must differ from each other")

    @property
    def latent_dim(self) -> int:
        """Values per latent token, D."""
        return self.latent_patch**2 * self.codec.z

    @property
    def token_px(self) -> int:
        """Pixels of a latent token along one side."""
        return self.codec.down * self.latent_patch

    def fit(self, height_px: int, width_px: int) -> tuple[int, int]:
        """(height, width) to which an image is resized before it is encoded; without `resize`, its own."""
        if self.resize is None:
            return height_px, width_px
        return self.resize.fit(height_px, width_px, self.token_px)

    def with_images(self, images: ImagesConfig) -> UnifiedConfig:
        """The same model with a recipe's image sizes.

        Raises:
            ConfigError: they reach beyond the position tables, or the model has no ViT.
        """
        if images.vit is not None and self.vit is None:
            raise ConfigError("images.vit: this model has no ViT; leave it null")
        vit = self.vit if self.vit is None or images.vit is None else replace(self.vit, resize=images.vit)
        return replace(self, resize=images.latent or self.resize, vit=vit)

    def latent_grid(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Latent tokens of an image as (rows, columns).

        Raises:
            ConfigError: a side is no multiple of the token's size, or exceeds the position table.
        """
        side = self.token_px
        if height_px % side or width_px % side:
            raise ConfigError(
                f"an image of {height_px}x{width_px} px does not split into {side} px tokens; "
                f"resize it to multiples of {side}"
            )
        grid = (height_px // side, width_px // side)
        if max(grid) > self.max_latent:
            raise ConfigError(
                f"an image of {height_px}x{width_px} px needs {max(grid)} tokens on a side, this model has "
                f"positions for {self.max_latent}; resize it to at most {self.max_latent * side} px"
            )
        return grid

    @classmethod
    def tiny(
        cls,
        *,
        vocab: int,
        token_ids: TokenIds,
        image_size: int = 64,
        hidden: int = 128,
        layers: int = 4,
        heads: int = 4,
        kv_heads: int = 2,
        mlp: int = 384,
        vit: bool = True,
        vit_hidden: int = 64,
        vit_layers: int = 2,
        vit_heads: int = 4,
        vit_mlp: int = 128,
        vit_patch: int | None = None,
        max_side: int = 8,
        latent_patch: int = 2,
        max_latent: int = 8,
        shift: float = 1.0,
        codec: CodecConfig | None = None,
    ) -> Self:
        """A model of 1-3 M parameters that trains on a CPU; every number can be overridden.

        The ViT's patch defaults to a quarter of `image_size` (16 px at 64), i.e. 16 tokens per image.
        """
        patch = image_size // 4 if vit_patch is None else vit_patch
        encoder = ViTConfig(
            hidden=vit_hidden, layers=vit_layers, heads=vit_heads, mlp=vit_mlp, patch=patch, max_side=max_side
        )
        config = cls(
            llm=LLMConfig(hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, mlp=mlp, vocab=vocab),
            vit=encoder if vit else None,
            codec=codec or CodecConfig(kind="tiny"),
            latent_patch=latent_patch,
            max_latent=max_latent,
            shift=shift,
            token_ids=token_ids,
        )
        config.latent_grid(image_size, image_size)
        return config

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`. Unknown or missing keys are a ConfigError."""
        nested = {
            "llm": LLMConfig,
            "codec": CodecConfig,
            "token_ids": TokenIds,
            "vit": ViTConfig,
            "resize": ResizeConfig,
        }

        def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
            parts = {
                key: build(nested[key], value, key) if key in nested and value is not None else value
                for key, value in values.items()
            }
            return _build(kind, parts, where)

        return build(cls, data, "model")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, in this project's own names."""
        return dataclasses.asdict(self)

    @classmethod
    def from_bagel_dir(cls, path: str | Path, *, token_ids: TokenIds | None = None) -> UnifiedConfig:
        """The configuration of a checkpoint folder in BAGEL's format (see `bagel_json`)."""
        from gvcot.model.bagel_json import read_bagel_dir

        return read_bagel_dir(Path(path), token_ids=token_ids)

    def to_bagel_json(self) -> dict[str, Any]:
        """The content of BAGEL's `config.json`, with `llm_config` and `vit_config` nested inside."""
        from gvcot.model.bagel_json import to_bagel_json

        return to_bagel_json(self)


def _check_reach(resize: ResizeConfig | None, reach: int, what: str) -> None:
    if resize is not None and resize.longest > reach:
        raise ConfigError(
            f"resize: longest={resize.longest} px exceeds the {what} position table: choose at most {reach}"
        )


def _build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {key!r} in {where}; {closest(key, fields)}")
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; give a value for each")
    return kind(**values)
