"""What one step of each stage is trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

from gvcot.data.encoded import EncodedScenes
from gvcot.data.stream import Epochs, epoch_rows
from gvcot.errors import ConfigError
from gvcot.model.pretrained import Pretrained
from gvcot.model.sequence import Segment
from sft.config import DataConfig, DropConfig, SFTConfig
from sft.stages import Batch, BatchBuilder, train_times

Make = Callable[..., SFTConfig]
KEEP_ALL = DropConfig(text=0.0, vae=0.0, vit=0.0)


@pytest.fixture
def build(policy: Pretrained, encoded: EncodedScenes) -> Callable[[SFTConfig], BatchBuilder]:
    def make(config: SFTConfig) -> BatchBuilder:
        feed = Epochs(encoded, config.batch_size, config.seed)
        return BatchBuilder(config, policy.model.config, feed, policy.tokenizer)

    return make


def kinds(segments: Sequence[Segment]) -> list[str]:
    return [s.kind for s in segments]


def same(a: Batch, b: Batch) -> bool:
    pairs = [(x, y) for r, s in zip(a.samples, b.samples, strict=True) for x, y in zip(r, s, strict=True)]
    return torch.equal(a.target_MD, b.target_MD) and all(
        x.kind == y.kind and x.drop == y.drop and float(x.t) == float(y.t) and torch.equal(x.data, y.data)
        for x, y in pairs
    )


def test_a_batch_is_a_function_of_seed_and_step(build: Callable[..., BatchBuilder], config: Make) -> None:
    mixed = config(mix={"gvcot": 1.0, "describe": 0.5, "direct": 1.0})
    first, again = build(mixed), build(mixed)
    first.batch(0)
    assert same(first.batch(3), again.batch(3))
    assert not torch.equal(
        config_batch(build, config, seed=0).target_MD, config_batch(build, config, seed=1).target_MD
    )


def config_batch(build: Callable[..., BatchBuilder], config: Make, **changes: int) -> Batch:
    return build(config(**changes)).batch(0)


@pytest.mark.parametrize(
    ("mix", "copies", "expected"),
    [
        ("gvcot", 1, "text vae vit text noise vae vit noise"),
        ("gvcot", 2, "text vae vit text noise noise vae vit noise noise"),
        ("mask", 1, "vae vit text noise"),
        ("direct", 1, "vae vit text noise"),
        ("describe", 1, "vit text text"),
        ("locate", 1, "vae vit text text"),
    ],
)
def test_each_kind_has_its_sequence(
    build: Callable[..., BatchBuilder], config: Make, mix: str, copies: int, expected: str
) -> None:
    batch = build(config(mix={mix: 1.0}, noise_copies=copies, drop=KEEP_ALL)).batch(0)
    assert [kinds(s) for s in batch.samples] == [expected.split()] * 4
    num_noise = expected.split().count("noise")
    assert batch.target_MD.shape == (4 * num_noise * 16, 64)
    assert not any(s.drop for sample in batch.samples for s in sample)


def test_answers_in_words_carry_the_text_loss(
    build: Callable[..., BatchBuilder], config: Make, encoded: EncodedScenes, policy: Pretrained
) -> None:
    for kind, truth in (
        ("describe", encoded.captions),
        ("inventory", encoded.inventories),
        ("locate", encoded.places),
    ):
        stage = config(mix={kind: 1.0})
        samples = build(stage).batch(0).samples
        for segments, row in zip(samples, epoch_rows(16, 4, stage.seed, 0), strict=True):
            *before, answer = segments
            assert answer.loss
            assert not any(s.loss for s in before)
            assert answer.data.tolist() == policy.tokenizer.encode(truth[row])


def test_several_questions_share_one_image(
    build: Callable[..., BatchBuilder], config: Make, encoded: EncodedScenes, policy: Pretrained
) -> None:
    stage = config(mix={"point": 1.0}, drop=KEEP_ALL)
    samples = build(stage).batch(0).samples
    for segments, row in zip(samples, epoch_rows(16, 4, stage.seed, 0), strict=True):
        image, pairs = segments[:2], segments[2:]
        assert [s.kind for s in image] == ["vae", "vit"]
        for (expression, place), asked, answered in zip(
            encoded.pointers[row], pairs[::2], pairs[1::2], strict=True
        ):
            assert asked.data.tolist() == policy.tokenizer.encode(f"Identify {expression}")
            assert not asked.loss
            assert answered.data.tolist() == policy.tokenizer.encode(place)
            assert answered.loss


def test_noisy_images_lie_between_noise_and_the_true_image(
    build: Callable[..., BatchBuilder], config: Make, encoded: EncodedScenes
) -> None:
    stage = config(drop=KEEP_ALL)
    batch = build(stage).batch(2)
    noisy = [s for sample in batch.samples for s in sample if s.kind == "noise"]
    rows = epoch_rows(16, 4, stage.seed, 2)
    truth = [images[row].float() for row in rows for images in (encoded.x_cot_MND, encoded.x_edit_MND)]
    for segment, x0, velocity in zip(noisy, truth, batch.target_MD.split(16), strict=True):
        t = float(segment.t)
        assert 0 < t < 1
        torch.testing.assert_close(segment.data - t * velocity, x0, atol=1e-4, rtol=0)  # x = x0 + t v
    for sample, row in zip(batch.samples, rows, strict=True):
        assert torch.equal(sample[5].data, encoded.x_cot_MND[row].float())  # the edit sees the true reasoning


def test_the_mix_is_kept_to(build: Callable[..., BatchBuilder], config: Make) -> None:
    builder = build(config(mix={"describe": 3.0, "mask": 1.0}, batch_size=64))
    seen = Counter(kinds(s)[-1] for step in range(4) for s in builder.batch(step).samples)
    assert 0.65 < seen["text"] / 256 < 0.85


def test_an_unknown_kind_is_answered_with_the_closest(
    build: Callable[..., BatchBuilder], config: Make
) -> None:
    with pytest.raises(ConfigError, match="did you mean 'gvcot'"):
        build(config(mix={"gvcto": 1.0}))


@pytest.mark.parametrize("part", ["text", "vae", "vit"])
def test_conditions_are_dropped_as_often_as_asked(
    build: Callable[..., BatchBuilder], config: Make, part: str
) -> None:
    drop = DropConfig(**({"text": 0.0, "vae": 0.0, "vit": 0.0} | {part: 0.5}))
    samples = [s for k in range(8) for s in build(config(drop=drop, batch_size=16)).batch(k).samples]
    dropped = Counter(s.kind for sample in samples for s in sample if s.drop)
    assert set(dropped) == {part}
    per_sample = 1 if part == "text" else 2  # images: of the source, and of the reasoning image
    assert 0.38 < dropped[part] / (per_sample * len(samples)) < 0.62
    assert not any(sample[0].drop for sample in samples)  # the system prompt stays


def test_an_epoch_has_every_sample_once_and_the_next_another_order() -> None:
    rows = [row for step in range(10) for row in epoch_rows(15, 6, 0, step)]  # 60 = 4 epochs, cut unevenly
    epochs = [rows[i : i + 15] for i in range(0, 60, 15)]
    assert all(sorted(epoch) == list(range(15)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epoch_rows(15, 6, 1, 0) != epoch_rows(15, 6, 0, 0)


def test_antithetic_times_lie_on_both_sides_of_the_median() -> None:
    times = torch.stack(list(train_times(400, 1.0, True, torch.Generator().manual_seed(0))))
    torch.testing.assert_close(times[::2] + times[1::2], torch.ones(200))  # sigmoid(z) + sigmoid(-z) = 1
    shifted = torch.stack(list(train_times(2, 3.0, True, torch.Generator().manual_seed(0))))
    torch.testing.assert_close(shifted, 3 * times[:2] / (1 + 2 * times[:2]))


def test_times_are_logit_normal_either_way() -> None:
    for antithetic in (True, False):
        times = torch.stack(list(train_times(4000, 1.0, antithetic, torch.Generator().manual_seed(0))))
        z = torch.logit(times)
        assert abs(z.mean().item()) < 0.06
        assert abs(z.std().item() - 1) < 0.06
    assert (times[::2] + times[1::2] - 1).abs().max() > 0.5  # independent: no pairs


@pytest.mark.parametrize(
    "changes",
    [{"mix": {}}, {"mix": {"gvcot": -1.0}}, {"mix": {"gvcot": 0.0}}, {"steps": 0}, {"batch_size": 0}],
)
def test_impossible_stages_are_refused(config: Make, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        config(**changes)


@pytest.mark.parametrize("changes", [{"num_samples": 0}, {"num_samples": -1}, {"reuse": 0}, {"shard": 0}])
def test_impossible_sets_of_scenes_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))}: expected at least 1"):
        DataConfig(**changes)
    assert DataConfig(num_samples=None).reuse == 4
