"""Packing by hand: position ids, boundaries, drops, targets and the errors a user can make."""

from __future__ import annotations

import pytest
import torch

from gvcot.errors import ConfigError, DataError
from gvcot.model.attention import visibility
from gvcot.model.config import UnifiedConfig
from gvcot.model.sequence import Segment, pack

GRID = (1, 2)


def ids(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def latents(num: int = 2) -> torch.Tensor:
    return torch.randn(num, 64)


def pixels(height: int = 16, width: int = 32) -> torch.Tensor:
    return torch.rand(3, height, width) * 2 - 1


def test_positions_of_a_gvcot_sequence(tiny_config):
    sample = [
        Segment.vae(latents(), GRID),
        Segment.vit(pixels()),
        Segment.text(ids(7, 8)),
        Segment.noise(latents(), 0.5, GRID),
        Segment.vae(latents(), GRID),
        Segment.vit(pixels()),
        Segment.noise(latents(), 0.5, GRID),
    ]
    packed = pack([sample], tiny_config)
    expected = [0] * 4 + [1] * 4 + [2, 3, 4, 5] + [6] * 4 + [6] * 4 + [7] * 4 + [8] * 4
    assert packed.position_ids_L.tolist() == expected
    assert packed.advance == [8]
    image = [3, -1, -1, 4]
    assert packed.token_ids_L.tolist() == [*image, *image, 1, 7, 8, 2, *image * 4]
    assert packed.token_kind_L.tolist()[:12] == [0, 2, 2, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert packed.noise_slices == [[slice(0, 2), slice(2, 4)]]
    assert packed.t_S.tolist() == [0.0, 0.5, 0.0, 0.5]


def test_dropped_images_keep_their_place_and_dropped_text_does_not(tiny_config):
    sample = [
        Segment.text(ids(7), drop=True),
        Segment.vae(latents(), GRID, drop=True),
        Segment.vit(pixels(), drop=True),
        Segment.text(ids(9)),
    ]
    packed = pack([sample], tiny_config)
    assert packed.position_ids_L.tolist() == [2, 3, 4]
    assert packed.segment_L.tolist() == [3, 3, 3]
    assert packed.token_ids_L.tolist() == [1, 9, 2]


def test_visibility_by_hand(tiny_config):
    sample = [Segment.text(ids()), Segment.noise(latents(1), 0.5, (1, 1)), Segment.text(ids(), bare=False)]
    (visible,) = visibility(pack([sample], tiny_config)).int().tolist()
    assert visible == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]


def test_text_targets_are_the_ids_and_the_end(tiny_config, tiny_model):
    sample = [Segment.text(ids(5, 6)), Segment.text(ids(7, 8), loss=True)]
    prediction = tiny_model(pack([sample, [Segment.text(ids(), loss=True)]], tiny_config))
    assert prediction.text_targets.tolist() == [7, 8, 2, 2]
    assert prediction.text_logits.shape == (4, tiny_config.llm.vocab)
    assert prediction.velocity_MD.shape == (0, 64)


def test_noise_slices_of_several_samples(tiny_config):
    samples = [
        [Segment.text(ids(5))],
        [Segment.noise(latents(), 0.1, GRID), Segment.noise(latents(3), torch.tensor(0.2), (3, 1))],
        [Segment.noise(latents(), 0.3, GRID)],
    ]
    packed = pack(samples, tiny_config)
    assert packed.noise_slices == [[], [slice(0, 2), slice(2, 5)], [slice(5, 7)]]
    torch.testing.assert_close(packed.t_S, torch.tensor([0.1, 0.2, 0.3]))
    assert packed.sample_lens == [3, 9, 4]


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        (Segment.vae(latents(3), GRID), r"1x2 grid must be \(2, 64\), got \(3, 64\)"),
        (Segment.vae(torch.randn(9, 64), (1, 9)), "8 positions per side"),
        (Segment.vit(pixels(17, 32)), "multiples of 16"),
        (Segment.vit(pixels(16, 144)), "128 px or less"),
        (Segment.text(torch.zeros(3)), "integer tensor"),
    ],
)
def test_unusable_payloads_are_explained(segment, message, tiny_config):
    with pytest.raises(DataError, match=message):
        pack([[segment]], tiny_config)


def test_vit_segment_needs_a_vit(tiny_config):
    blind = UnifiedConfig.tiny(vocab=40, token_ids=tiny_config.token_ids, vit=False)
    with pytest.raises(ConfigError, match="no ViT"):
        pack([[Segment.vit(pixels())]], blind)


def test_bare_text_has_no_loss():
    with pytest.raises(ConfigError, match="bare"):
        Segment.text(ids(5), bare=True, loss=True)
