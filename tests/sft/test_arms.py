"""What the controls of the chain are trained on: same tokens as `gvcot`, another order or another truth."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from gvcot.data.encoded import EncodedScenes
from gvcot.data.stream import Epochs, epoch_rows
from gvcot.errors import ConfigError
from gvcot.model import flow
from gvcot.model.pretrained import Pretrained
from gvcot.model.sequence import Segment
from gvcot.sampler import vit_pixels
from sft.config import DropConfig, SFTConfig
from sft.stages import Batch, BatchBuilder
from sft.train import new_state, training_step

Make = Callable[..., SFTConfig]
Build = Callable[..., Batch]


@pytest.fixture
def build(policy: Pretrained, encoded: EncodedScenes, config: Make) -> Build:
    """build(kind, ...): the first batch of a stage of one kind, nothing dropped."""

    def make(kind: str, **changes: object) -> Batch:
        stage = config(mix={kind: 1.0}, drop=DropConfig(text=0.0, vae=0.0, vit=0.0), **changes)
        feed = Epochs(encoded, stage.batch_size, stage.seed)
        builder = BatchBuilder(stage, policy.model.config, feed, policy.tokenizer, policy.codec)
        return builder.batch(0)

    return make


def clean(noisy: Segment, velocity_ND: torch.Tensor) -> torch.Tensor:
    return noisy.data - float(noisy.t) * velocity_ND  # x = x0 + t v


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("gvcot", "x_cot", "x_edit"), ("edit_first", "x_edit", "x_cot"), ("blank", "source", "x_edit")],
)
def test_each_control_is_taught_its_images_in_its_order(
    build: Build, encoded: EncodedScenes, policy: Pretrained, kind: str, first: str, second: str
) -> None:
    batch = build(kind)
    config, vit = policy.model.config, policy.model.config.vit
    assert vit is not None
    velocities = iter(batch.target_MD.split(16))
    for segments, row in zip(batch.samples, epoch_rows(16, 4, 0, 0), strict=True):
        assert [s.kind for s in segments] == ["text", "vae", "vit", "text", "noise", "vae", "vit", "noise"]
        truths_ND = [getattr(encoded, f"{name}_MND")[row].float() for name in (first, second)]
        for noisy, truth_ND in zip((segments[4], segments[7]), truths_ND, strict=True):
            torch.testing.assert_close(clean(noisy, next(velocities)), truth_ND, atol=1e-4, rtol=0)
        assert torch.equal(segments[5].data, truths_ND[0])  # fed back
        with torch.no_grad():
            decoded = policy.codec.decode(
                flow.unpatchify(truths_ND[0][None], encoded.grid, config.latent_patch)
            )
        # Pixels of painted images are stored in 8 bits, from latents before they were rounded to 16.
        torch.testing.assert_close(segments[6].data, vit_pixels(decoded, vit)[0], atol=0.02, rtol=0)


def test_the_controls_cost_what_gvcot_costs(build: Build) -> None:
    sizes = {
        kind: [sum(s.data.numel() for s in segments) for segments in build(kind).samples]
        for kind in ("gvcot", "edit_first", "blank")
    }
    assert sizes["gvcot"] == sizes["edit_first"] == sizes["blank"]


def test_pixels_are_only_decoded_for_those_who_look(build: Build) -> None:
    segments = build("edit_first", feedback=("vae",)).samples[0]
    assert [s.kind for s in segments] == ["text", "vae", "vit", "text", "noise", "vae", "noise"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gvcot", [0.5, 0.5, 1, 1]), ("edit_first", [1, 1, 0.5, 0.5]), ("blank", [0.5, 0.5, 1, 1]),
     ("direct", [1, 1]), ("mask", [0.5, 0.5])],
)  # fmt: skip
def test_the_tokens_of_an_image_carry_its_weight(build: Build, kind: str, expected: list[float]) -> None:
    batch = build(kind, noise_copies=2, phase_loss_weights={"x_cot": 0.5})
    assert batch.weight_M.view(4, -1, 16)[:, :, 0].tolist() == [expected] * 4
    assert len(batch.weight_M) == len(batch.target_MD)
    assert build(kind).weight_M.eq(1).all()


def test_a_step_is_trained_on_the_weighted_loss(
    policy: Pretrained, encoded: EncodedScenes, config: Make
) -> None:
    stage = config(mix={"mask": 1.0}, phase_loss_weights={"x_cot": 0.25})
    feed = Epochs(encoded, stage.batch_size, stage.seed)
    builder = BatchBuilder(stage, policy.model.config, feed, policy.tokenizer, policy.codec)
    scalars = training_step(stage, builder, new_state(stage, policy.model))
    assert scalars["sft/loss"] == pytest.approx(0.25 * scalars["sft/flow_mse"])


@pytest.mark.parametrize(
    ("weights", "message"),
    [({"x_cto": 1.0}, "did you mean 'x_cot'"), ({"x_cot": -1.0}, "x_cot: expected a number >= 0; got -1")],
)
def test_wrong_weights_are_refused(config: Make, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(phase_loss_weights=weights)
