"""One model that reads text, sees images and draws them: BAGEL at any size.

`forward` runs packed sequences (training, replay), `prefill` and `velocity` run the same computation
piece by piece over a cache (sampling). What a piece computes does not depend on which way it came, nor
on `.training`. Where the weights are is the model's own affair: results come back to where the inputs are.

Legend: B rows, N latent tokens of an image, D values per latent token, M noisy latent tokens of a pack,
Q tokens that predict text, T text ids, V vocabulary, U and G rows of the two experts' streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gvcot.errors import DataError
from gvcot.model.attention import AttnSpec, Cache, build_spec
from gvcot.model.compute import Attention, ComputeConfig
from gvcot.model.config import UnifiedConfig
from gvcot.model.embeddings import PositionTable, TimeEmbedder
from gvcot.model.mot import KV, LanguageModel, RMSNorm
from gvcot.model.sequence import Grid, Packed, Segment, pack
from gvcot.model.siglip import GeluMLP, SigLIP


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prediction:
    """What the model says about a pack."""

    velocity_MD: Tensor
    """fp32 velocities of all noisy tokens, in pack order; `Packed.noise_slices` tells them apart."""

    text_logits: Tensor
    """fp32 (Q, V) next-token logits at bos and every id of the text segments with loss."""

    text_targets: Tensor
    """int64 (Q,): the ids, then eos."""


class UnifiedModel(nn.Module):
    """BAGEL's Mixture-of-Transformers with official parameter names.

    Example:
        packed = pack([[Segment.text(ids_T), Segment.noise(x_ND, t, grid)]], config)
        velocity_MD = model(packed).velocity_MD
    """

    attention: Attention
    """How attention is computed; results agree, so it may be changed at any time."""

    sharded: bool = False
    """Whether parameters are sharded over workers, which then have to agree on which of them have a gradient:
    what a pack does not use gets a gradient of zero instead of none."""

    def __init__(self, config: UnifiedConfig, *, attention: Attention = "auto") -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        hidden = config.llm.hidden
        self.language_model = LanguageModel(config.llm)
        self.time_embedder = TimeEmbedder(hidden)
        self.vae2llm = nn.Linear(config.latent_dim, hidden)
        self.llm2vae = nn.Linear(hidden, config.latent_dim)
        self.latent_pos_embed = PositionTable(config.max_latent, hidden)
        if config.vit is not None:
            self.vit_model = SigLIP(config.vit)
            self.connector = GeluMLP(config.vit.hidden, hidden, hidden)
            self.vit_pos_embed = PositionTable(config.vit.max_side, hidden)
        if not self.llm2vae.weight.is_meta:
            self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise for training from scratch, reproducibly from `generator` (default: torch's own).

        Matrices are normal with variance 1 / fan_in, those that write to the decoder's residual stream
        also divided by 2 * layers; biases are 0, norms 1, `llm2vae` 0 as in BAGEL. Token embeddings have
        a deviation of 0.5, the scale of the latent and position embeddings they stand beside.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes_residual = name.endswith(("o_proj", "o_proj_moe_gen", "down_proj"))
                variance = 1 / module.in_features / (2 * self.config.llm.layers if writes_residual else 1)
                module.weight.normal_(0, variance**0.5, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                is_vit_position = name.endswith("position_embedding")
                module.weight.normal_(0, 0.02 if is_vit_position else 0.5, generator=generator)
            elif isinstance(module, (RMSNorm, nn.LayerNorm)):
                module.weight.fill_(1)
            elif isinstance(module, PositionTable):
                module.reset()
        self.llm2vae.weight.zero_()

    def compute_as(self, compute: ComputeConfig) -> None:
        """Choose how attention is computed and whether activations are kept. The dtype is FSDP2's part, see
        `gvcot.distributed.shard`."""
        self.attention = compute.attention
        self.language_model.model.recompute = compute.activation_checkpointing
        if self.config.vit is not None:
            self.vit_model.vision_model.encoder.recompute = compute.activation_checkpointing

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae2llm.weight.device

    def forward(self, packed: Packed) -> Prediction:
        """Velocities of every noisy token and logits of every text segment with loss."""
        home = packed.und_idx.device
        packed = packed.to(self.device)
        x_U, x_G = self._embed(packed)
        wanted = (packed.logit_rows_Q, packed.noise_rows_M)
        x_QH, x_MH, _ = self.language_model.model(x_U, x_G, self._spec(packed, x_U.dtype), wanted)
        return Prediction(
            velocity_MD=self._velocity(x_MH).to(home),
            text_logits=self._logits(x_QH).to(home),
            text_targets=packed.text_targets_Q.to(home),
        )

    def new_cache(self, batch: int) -> Cache:
        """An empty cache for `batch` chains."""
        return Cache(
            layers=[None] * self.config.llm.layers,
            valid_BK=torch.zeros(batch, 0, dtype=torch.bool, device=self.device),
            next_position_B=torch.zeros(batch, dtype=torch.int64, device=self.device),
        )

    def prefill(self, cache: Cache, segments: Sequence[Segment]) -> Float[Tensor, "B V"] | None:
        """Append one segment to each row of the cache; all of one kind, text lengths may differ.

        Text is written by prefilling bare pieces: bos, then each id, then eos (`Segment.text(bare=True)`).

        Returns:
            For text, the logits after each row's last token (NaN for dropped rows); None for images.

        Raises:
            DataError: a wrong number of segments, mixed kinds, or a noisy segment (nothing but itself
                ever sees it, so it has no place in a cache).
        """
        kinds = {segment.kind for segment in segments}
        if len(segments) != cache.batch or len(kinds) != 1 or kinds == {"noise"}:
            raise DataError(
                f"prefill takes one text, vae or vit segment for each of {cache.batch} rows, got "
                f"{len(segments)} of kind {sorted(kinds)}; call it once per kind"
            )
        return self._append(cache, pack([[segment] for segment in segments], self.config), kinds == {"text"})

    def velocity(
        self, cache: Cache, x_BND: Float[Tensor, "B N D"], t_B: Float[Tensor, " B"], grid: Grid
    ) -> Float[Tensor, "B N D"]:
        """Velocity of noisy images in the context of the cache, which is read and not changed. fp32."""
        times = t_B.expand(x_BND.shape[0]).unbind()
        rows = zip(x_BND.unbind(), times, strict=True)
        packed = pack([[Segment.noise(x_ND, t, grid)] for x_ND, t in rows], self.config).to(self.device)
        x_U, x_G = self._embed(packed)
        spec = self._spec(packed, x_U.dtype, cache)
        wanted = (packed.logit_rows_Q, packed.noise_rows_M)
        _, x_MH, _ = self.language_model.model(x_U, x_G, spec, wanted, cache.layers)
        return self._velocity(x_MH).view_as(x_BND).to(x_BND.device)

    def _append(self, cache: Cache, packed: Packed, is_text: bool) -> Tensor | None:
        home = packed.und_idx.device
        packed = packed.to(self.device)
        logits_BV = torch.full((cache.batch, self.config.llm.vocab), torch.nan, device=self.device)
        new_kv: list[KV] = []
        if any(packed.sample_lens):
            x_U, x_G = self._embed(packed)
            spec = self._spec(packed, x_U.dtype, cache)
            wanted = (packed.last_rows if is_text else packed.logit_rows_Q, packed.noise_rows_M)
            x_BH, _, new_kv = self.language_model.model(x_U, x_G, spec, wanted, cache.layers)
            if is_text:
                present = torch.tensor([length > 0 for length in packed.sample_lens], device=self.device)
                logits = self._logits(x_BH)
                logits_BV = logits_BV.to(logits.dtype).masked_scatter(present[:, None], logits)
        cache.append(new_kv, packed)
        return logits_BV.to(home) if is_text else None

    def _spec(self, packed: Packed, dtype: torch.dtype, cache: Cache | None = None) -> AttnSpec:
        llm = self.config.llm
        return build_spec(
            packed,
            head_dim=llm.head_dim,
            rope_theta=llm.rope_theta,
            dtype=dtype,
            cache=cache,
            attention=self.attention,
        )

    def _embed(self, packed: Packed) -> tuple[Tensor, Tensor]:
        words = self.language_model.model.embed_tokens(packed.token_ids_L[packed.und_idx[packed.word_rows]])
        x_U = words
        if packed.vit_pixels:
            x_U = words.new_zeros(packed.und_idx.shape[0], words.shape[1])
            x_U = x_U.index_copy(0, packed.word_rows, words)
            images = zip(packed.vit_pixels, packed.vit_table_rows, packed.vit_rows, strict=True)
            for pixels_I3HW, table_rows_N, rows_IN in images:
                features = self.connector(self.vit_model(pixels_I3HW, table_rows_N))
                tokens = features + self.vit_pos_embed(table_rows_N)
                x_U = x_U.index_copy(0, rows_IN.flatten(), tokens.flatten(0, 1))
        elif self.sharded and self.config.vit is not None and torch.is_grad_enabled():
            x_U = x_U + 0.0 * self._blank_features().sum()
        latents = self.vae2llm(packed.latent_GD.to(self.vae2llm.weight.dtype))
        times = self.time_embedder(packed.t_S)[packed.latent_segment_G]
        return x_U, latents + times + self.latent_pos_embed(packed.latent_rows_G)

    def _blank_features(self) -> Tensor:
        """The ViT's features of one blank patch: of no patches, some attention kernels on GPUs refuse."""
        assert self.config.vit is not None
        patch, weight = self.config.vit.patch, self.vit_model.vision_model.post_layernorm.weight
        one_row = torch.zeros(1, dtype=torch.int64, device=weight.device)
        return self.connector(self.vit_model(weight.new_zeros(1, 3, patch, patch), one_row))

    def _velocity(self, x_MH: Tensor) -> Tensor:
        return _at_least_fp32(self.llm2vae(self.language_model.model.norm_moe_gen(x_MH)))

    def _logits(self, x_QH: Tensor) -> Tensor:
        # An unused head's gradient stays None, so that no optimizer decays it.
        if not x_QH.shape[0] and not self.sharded:
            return torch.zeros(0, self.config.llm.vocab, device=x_QH.device)
        return _at_least_fp32(self.language_model.lm_head(self.language_model.model.norm(x_QH)))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
