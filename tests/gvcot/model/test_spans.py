"""Attention segment by segment against the mask, which is the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from gvcot.model.attention import MOST_DENSE, build_spec
from gvcot.model.config import TokenIds, UnifiedConfig
from gvcot.model.layout import Span
from gvcot.model.sequence import Segment, pack
from gvcot.model.spans import segments_of
from gvcot.model.unified import UnifiedModel


def test_what_each_segment_sees_by_hand():
    # one sample: two words, a noisy image of one token, an image of one token; boundaries count as tokens
    spans = [Span(0, 0, 4, True, False), Span(0, 4, 3, False, True), Span(0, 7, 3, False, False)]
    text, images = segments_of(spans, 10, None, torch.device("cpu")).groups
    assert text.query_nq.tolist() == text.key_nk.tolist() == [[0, 1, 2, 3]]
    assert text.seen_qk is not None
    assert text.seen_qk.int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    assert images.query_nq.tolist() == [[4, 5, 6], [7, 8, 9]]
    assert images.key_nk.tolist() == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8, 9]]
    assert images.seen_qk is None


def test_cached_keys_come_first_and_their_padding_is_left_out():
    valid_BK = np.array([[True, True, False], [True, False, False]])
    spans = [Span(0, 0, 2, False, False), Span(1, 0, 2, False, False)]
    longer, shorter = segments_of(spans, 2, valid_BK, torch.device("cpu")).groups
    assert longer.key_nk.tolist() == [[0, 1, 3, 4]]
    assert shorter.key_nk.tolist() == [[5, 8, 9]]


def test_segments_of_one_shape_are_computed_together():
    spans = [Span(sample, start, 3, False, False) for sample in range(4) for start in (0, 3)]
    first, second = segments_of(spans, 6, None, torch.device("cpu")).groups
    assert first.query_nq.shape == (4, 3)
    assert second.key_nk.shape == (4, 6)


def _samples(layouts: list[list[str]], config) -> list[list[Segment]]:
    draw = torch.Generator().manual_seed(7)

    def segment(kind: str) -> Segment:
        if kind.startswith("text"):
            ids = torch.randint(5, 40, (int(kind[-1]),), generator=draw)
            return Segment.text(ids, loss=kind.startswith("text+"))
        if kind == "vit":
            return Segment.vit(torch.rand(3, 16, 32, generator=draw) * 2 - 1)
        x_ND = torch.randn(4, config.latent_dim, generator=draw)
        return Segment.vae(x_ND, (2, 2)) if kind == "vae" else Segment.noise(x_ND, 0.4, (2, 2))

    return [[segment(kind) for kind in kinds] for kinds in layouts]


KINDS = st.sampled_from(["text 1", "text 4", "text+3", "vit", "vae", "noise"])


@settings(max_examples=20)
@given(st.lists(st.lists(KINDS, max_size=6), min_size=1, max_size=4))
def test_values_and_gradients_are_those_of_the_mask(layouts):
    config = _config()
    packed = pack(_samples(layouts, config), config)
    results = {}
    for attention in ("dense", "segments"):
        model = UnifiedModel(config, attention=attention).double()
        _fill(model)
        prediction = model(packed)
        (prediction.velocity_MD.square().sum() + prediction.text_logits.square().sum()).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results[attention] = [prediction.velocity_MD, prediction.text_logits, *gradients]
    for ours, reference in zip(results["segments"], results["dense"], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


def test_auto_builds_no_mask_for_long_samples():
    config = _config()
    for num_words, masked in ((10, True), (MOST_DENSE, False)):
        words = Segment.text(torch.full((num_words,), 7))
        packed = pack([[words, *_samples([["vae"]], config)[0]]], config)
        spec = build_spec(packed, head_dim=8, rope_theta=1e4, dtype=torch.float32)
        assert (spec.bias_B1LK is not None) is masked
        assert (spec.segments is None) is masked


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for part in out if isinstance(out, tuple | list) else (out,):
            if isinstance(part, torch.Tensor):
                self.numel = max(self.numel, part.numel())
        return out


@pytest.mark.parametrize(
    ("attention", "makes_a_mask", "side", "num_images"),
    [
        ("dense", True, 32, 2),
        ("auto", False, 32, 2),
        pytest.param("auto", False, 64, 3, marks=pytest.mark.slow),  # 25,000 tokens, as of 1024 pixels
    ],
)
def test_memory_of_a_long_sequence_grows_with_its_length_only(attention, makes_a_mask, side, num_images):
    """Images, each followed by a noisy copy, which later ones do not see."""
    config = _config(max_latent=side)
    image, grid = torch.zeros(side**2, config.latent_dim), (side, side)
    pair = Segment.vae(image, grid), Segment.noise(image, 0.5, grid)
    packed = pack([list(pair) * num_images], config)
    length = packed.sample_lens[0]
    model = UnifiedModel(config, attention=attention)
    with _Largest() as largest, torch.no_grad():
        model(packed)
    assert (largest.numel >= length**2) is makes_a_mask
    if not makes_a_mask:
        seen = sum(k + (k + 1) for k in range(1, num_images + 1))
        gathered = seen * (side**2 + 2) * config.llm.kv_heads * config.llm.head_dim
        assert largest.numel <= max(gathered, length * config.latent_dim)


def _config(max_latent: int = 8) -> UnifiedConfig:
    return UnifiedConfig.tiny(
        vocab=40,
        token_ids=TokenIds(bos=1, eos=2, boi=3, eoi=4),
        hidden=16,
        layers=2,
        mlp=16,
        vit_hidden=16,
        vit_heads=2,
        vit_mlp=16,
        max_latent=max_latent,
    )


def _fill(model: UnifiedModel) -> None:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=draw)
