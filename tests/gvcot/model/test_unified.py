"""One computation, many routes: packed or cached, together or alone, padded or not. fp32 bound 1e-5."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gvcot.errors import DataError
from gvcot.model import flow
from gvcot.model.compute import ComputeConfig
from gvcot.model.config import UnifiedConfig
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel

TOL = 1e-5
ROUNDING = 1e-6
"""Absolute floor for gradients that are zero in exact arithmetic (the ViT's key bias)."""

GRID = (2, 2)


class Draw:
    """Random payloads from one seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def text(self, num: int, **flags: bool) -> Segment:
        return Segment.text(torch.randint(5, 40, (num,), generator=self.generator), **flags)

    def latents(self, grid=GRID) -> torch.Tensor:
        return torch.randn(grid[0] * grid[1], 64, generator=self.generator)

    def vae(self, grid=GRID, **flags: bool) -> Segment:
        return Segment.vae(self.latents(grid), grid, **flags)

    def vit(self, height: int = 32, width: int = 32, **flags: bool) -> Segment:
        return Segment.vit(torch.rand(3, height, width, generator=self.generator) * 2 - 1, **flags)

    def noise(self, t: float, grid=GRID) -> Segment:
        return Segment.noise(self.latents(grid), t, grid)

    def gvcot(self, num_ids: int, **drop_text: bool) -> list[Segment]:
        return [
            self.vae(),
            self.vit(),
            self.text(num_ids, **drop_text),
            self.noise(0.7),
            self.vae(),
            self.vit(16, 48),
            self.noise(0.4),
        ]


def close(actual: torch.Tensor, expected: torch.Tensor, floor: float = 0.0) -> None:
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=max(TOL * scale, floor))


def test_packed_equals_cached_with_mixed_lengths_and_drops(tiny_config, tiny_model):
    draw = Draw(1)
    samples = [draw.gvcot(3), draw.gvcot(6), draw.gvcot(4, drop=True)]
    packed = pack(samples, tiny_config)
    velocity_MD = tiny_model(packed).velocity_MD
    cache = tiny_model.new_cache(len(samples))
    for index in range(7):
        segments = [sample[index] for sample in samples]
        if segments[0].kind == "noise":
            x_BND = torch.stack([segment.data for segment in segments])
            v_BND = tiny_model.velocity(cache, x_BND, torch.tensor([segments[0].t]), GRID)
            which = 0 if index == 3 else 1
            expected = torch.stack([velocity_MD[rows[which]] for rows in packed.noise_slices])
            close(v_BND, expected)
        else:
            tiny_model.prefill(cache, segments)
    assert cache.next_position_B.tolist() == packed.advance


def test_gradient_through_the_cache_equals_the_packed_one(tiny_config, tiny_model):
    sample = Draw(2).gvcot(3)[:4]
    tiny_model(pack([sample], tiny_config)).velocity_MD.square().sum().backward()
    expected = {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.grad is not None}
    tiny_model.zero_grad()
    cache = tiny_model.new_cache(1)
    for segment in sample[:3]:
        tiny_model.prefill(cache, [segment])
    tiny_model.velocity(cache, sample[3].data[None], torch.tensor([0.7]), GRID).square().sum().backward()
    for name, parameter in tiny_model.named_parameters():
        if name in expected and parameter.grad is not None:
            close(parameter.grad, expected[name], floor=ROUNDING)
    assert expected["vae2llm.weight"].abs().max() > 0


def test_many_noise_segments_equal_separate_packs(tiny_config, tiny_model):
    draw = Draw(3)
    prefix = [draw.vae(), draw.vit(), draw.text(3)]
    steps = [draw.noise(t) for t in (0.9, 0.6, 0.3)]
    clean, last = draw.vae(), [draw.noise(t) for t in (0.8, 0.2)]

    together = pack([[*prefix, *steps, clean, *last]], tiny_config)
    velocity_MD = tiny_model(together).velocity_MD
    velocity_MD.square().sum().backward()
    gradient = {n: p.grad.clone() for n, p in tiny_model.named_parameters() if p.grad is not None}

    tiny_model.zero_grad()
    alone = [[*prefix, step] for step in steps] + [[*prefix, clean, step] for step in last]
    for sample, rows in zip(alone, together.noise_slices[0], strict=True):
        v_ND = tiny_model(pack([sample], tiny_config)).velocity_MD
        close(v_ND, velocity_MD[rows])
        v_ND.square().sum().backward()
    for name, parameter in tiny_model.named_parameters():
        if name in gradient:
            close(parameter.grad, gradient[name], floor=ROUNDING)


def test_checkpointed_activations_give_the_same_gradients_for_less_memory(tiny_config, tiny_model):
    packed = pack([Draw(15).gvcot(4), Draw(16).gvcot(7)], tiny_config)
    kept: dict[bool, int] = {}
    gradients: dict[bool, list[torch.Tensor]] = {}
    for checkpointing in (False, True):
        tiny_model.compute_as(
            ComputeConfig(attention=tiny_model.attention, activation_checkpointing=checkpointing)
        )
        tiny_model.zero_grad()
        kept[checkpointing] = 0

        def keep(x: torch.Tensor, which: bool = checkpointing) -> torch.Tensor:
            kept[which] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = tiny_model(packed).velocity_MD.square().sum()
        loss.backward()
        gradients[checkpointing] = [p.grad.clone() for p in tiny_model.parameters() if p.grad is not None]
    assert all(torch.equal(a, b) for a, b in zip(gradients[False], gradients[True], strict=True))
    assert kept[True] < 0.5 * kept[False]


@pytest.fixture(scope="module")
def shared_model(tiny_config, attention) -> UnifiedModel:
    """One model for all property examples; it is only read."""
    model = UnifiedModel(tiny_config, attention=attention)
    model.init_weights(torch.Generator().manual_seed(5))
    torch.nn.init.normal_(model.llm2vae.weight, generator=torch.Generator().manual_seed(6))
    return model


KINDS = ["text", "said", "vae", "vit", "wide", "noise"]


def make(draw: Draw, kind: str) -> Segment:
    if kind in ("text", "said"):
        return draw.text(2 + len(kind) % 3, loss=kind == "said")
    if kind == "vit":
        return draw.vit()
    if kind == "wide":
        return draw.vit(16, 64)
    return draw.vae((1, 3)) if kind == "vae" else draw.noise(0.35)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), min_size=2, max_size=4))
@torch.no_grad()
def test_pack_composition_changes_nothing(shared_model, tiny_config, kinds):
    draw = Draw(len(kinds))
    samples = [[make(draw, kind) for kind in row] for row in kinds]
    together = pack(samples, tiny_config)
    joint = shared_model(together)
    apart = [shared_model(pack([sample], tiny_config)) for sample in samples]
    close(joint.velocity_MD, torch.cat([prediction.velocity_MD for prediction in apart]))
    close(joint.text_logits, torch.cat([prediction.text_logits for prediction in apart]))
    reverse = shared_model(pack(samples[::-1], tiny_config))
    close(reverse.velocity_MD, torch.cat([prediction.velocity_MD for prediction in apart[::-1]]))


def test_noise_is_seen_by_nobody_else(shared_model, tiny_config):
    draw = Draw(4)
    sample = draw.gvcot(3)
    other = [*sample[:3], draw.noise(0.1), *sample[4:]]
    rows = pack([sample], tiny_config).noise_slices[0][1]
    first, second = (shared_model(pack([s], tiny_config)).velocity_MD for s in (sample, other))
    assert torch.equal(first[rows], second[rows])
    assert not torch.equal(first, second)


@torch.no_grad()
def test_repeat_and_copy(shared_model, tiny_config):
    draw = Draw(5)
    cache = shared_model.new_cache(2)
    shared_model.prefill(cache, [draw.text(2), draw.text(5)])
    x_BND = torch.stack([draw.latents() for _ in range(4)])
    t_B = torch.tensor([0.2, 0.4, 0.6, 0.8])
    v_BND = shared_model.velocity(cache.repeat(2), x_BND, t_B, GRID)
    for column in range(2):
        rows = [column, 2 + column]
        close(shared_model.velocity(cache, x_BND[rows], t_B[rows], GRID), v_BND[rows])
    branch = cache.copy()
    before = shared_model.velocity(cache, x_BND[:2], t_B[:2], GRID)
    shared_model.prefill(branch, [draw.vae(), draw.vae()])
    assert torch.equal(shared_model.velocity(cache, x_BND[:2], t_B[:2], GRID), before)
    assert not torch.equal(shared_model.velocity(branch, x_BND[:2], t_B[:2], GRID), before)


@torch.no_grad()
def test_velocity_in_an_empty_context(shared_model, tiny_config):
    segment = Draw(6).noise(0.5)
    v_BND = shared_model.velocity(shared_model.new_cache(1), segment.data[None], torch.tensor(0.5), GRID)
    close(v_BND[0], shared_model(pack([[segment]], tiny_config)).velocity_MD)


@torch.no_grad()
def test_text_written_in_pieces_equals_the_whole(shared_model, tiny_config):
    ids = tiny_config.token_ids
    draw = Draw(7)
    texts = [draw.text(4), draw.text(2)]
    whole, pieces = shared_model.new_cache(2), shared_model.new_cache(2)
    last = shared_model.prefill(whole, texts)
    rows = [[ids.bos, *text.data.tolist(), ids.eos] for text in texts]
    written: dict[int, torch.Tensor] = {}
    for step in range(6):
        piece = [torch.tensor(row[step : step + 1], dtype=torch.int64) for row in rows]
        logits_BV = shared_model.prefill(pieces, [Segment.text(part, bare=True) for part in piece])
        assert torch.isnan(logits_BV).all(dim=1).tolist() == [not len(part) for part in piece]
        written |= {row: logits_BV[row] for row in range(2) if len(piece[row])}
    close(torch.stack([written[0], written[1]]), last)
    assert pieces.next_position_B.tolist() == whole.next_position_B.tolist() == [6, 4]
    x_BND = torch.stack([draw.latents(), draw.latents()])
    t_B = torch.tensor([0.3, 0.3])
    close(shared_model.velocity(pieces, x_BND, t_B, GRID), shared_model.velocity(whole, x_BND, t_B, GRID))


@torch.no_grad()
def test_wholly_dropped_prefill(shared_model):
    draw = Draw(8)
    cache = shared_model.new_cache(2)
    assert shared_model.prefill(cache, [draw.vae(drop=True), draw.vae(drop=True)]) is None
    assert cache.next_position_B.tolist() == [1, 1]
    assert torch.isnan(shared_model.prefill(cache, [draw.text(3, drop=True), draw.text(3, drop=True)])).all()
    assert cache.next_position_B.tolist() == [1, 1]


def test_prefill_refuses_noise_and_mixed_kinds(shared_model):
    draw = Draw(9)
    for segments in ([draw.noise(0.5)], [draw.text(2), draw.vae()], []):
        with pytest.raises(DataError, match="prefill takes one"):
            shared_model.prefill(shared_model.new_cache(len(segments) or 1), segments)


def test_model_without_vit(tiny_config):
    config = UnifiedConfig.tiny(
        vocab=40, token_ids=tiny_config.token_ids, hidden=32, layers=1, mlp=32, vit=False
    )
    model = UnifiedModel(config)
    assert not any("vit" in name or "connector" in name for name in model.state_dict())
    draw = Draw(10)
    sample = [draw.vae(), draw.text(3), draw.noise(0.5)]
    assert model(pack([sample], config)).velocity_MD.shape == (4, 64)


def test_double_precision_follows(shared_model, tiny_config):
    sample = Draw(11).gvcot(3)
    single = shared_model(pack([sample], tiny_config)).velocity_MD
    model = UnifiedModel(tiny_config)
    model.load_state_dict(shared_model.state_dict())
    double = model.double()(pack([sample], tiny_config)).velocity_MD
    assert double.dtype == torch.float64
    close(single, double.float())


def test_bfloat16_is_near(shared_model, tiny_config):
    sample = Draw(12).gvcot(3)
    exact = shared_model(pack([sample], tiny_config)).velocity_MD
    model = UnifiedModel(tiny_config)
    model.load_state_dict(shared_model.state_dict())
    rough = model.bfloat16()(pack([sample], tiny_config)).velocity_MD
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 0.05


def test_tiny_has_one_to_three_million_parameters(tiny_config, capsys):
    config = UnifiedConfig.tiny(vocab=200, token_ids=tiny_config.token_ids)
    model = UnifiedModel(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    with capsys.disabled():
        print(f"\ntiny model: {count:,} parameters")
    assert 1e6 < count < 3e6
    assert config.latent_dim * 2 <= config.llm.hidden


def test_init_is_reproducible_and_starts_at_zero_velocity(tiny_config):
    first, second = UnifiedModel(tiny_config), UnifiedModel(tiny_config)
    first.init_weights(torch.Generator().manual_seed(1))
    second.init_weights(torch.Generator().manual_seed(1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert first(pack([Draw(13).gvcot(2)], tiny_config)).velocity_MD.abs().max() == 0
    assert not first.latent_pos_embed.pos_embed.requires_grad


def test_a_few_steps_of_training_reduce_both_losses(tiny_config):
    torch.manual_seed(0)
    model = UnifiedModel(tiny_config)
    draw = Draw(14)
    x0, eps = draw.latents(), draw.latents()
    x_t = flow.interpolate(x0[None], eps[None], torch.tensor([0.5]))[0]
    caption = draw.text(3, loss=True)
    packed = pack([[draw.vit(), caption, Segment.noise(x_t, 0.5, GRID)]], tiny_config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(30):
        prediction = model(packed)
        velocity_loss = (prediction.velocity_MD - flow.velocity_target(x0, eps)).square().mean()
        text_loss = torch.nn.functional.cross_entropy(prediction.text_logits, prediction.text_targets)
        losses.append((velocity_loss.item(), text_loss.item()))
        optimizer.zero_grad()
        (velocity_loss + text_loss).backward()
        optimizer.step()
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.2 * losses[0][1]
