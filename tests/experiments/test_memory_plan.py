"""The plan against what the tiny model really takes, and against arithmetic by hand."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from experiments.cli import app
from experiments.memory_plan import (
    BOUNDARIES,
    GIB,
    TEXT_TOKENS,
    Plan,
    Run,
    activation_floats,
    context_tokens,
    count,
    fits,
    plan,
    run_of,
    training_tokens,
)
from gvcot.config import load, recipe_names
from gvcot.errors import ConfigError
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.config import QWEN2_TOKEN_IDS, CodecConfig, LLMConfig, TokenIds, UnifiedConfig, ViTConfig
from gvcot.model.pretrained import load_pretrained
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel
from gvcot.run_dir import RunDir
from rl.config import RLConfig
from sft.config import SFTConfig
from sft.train import new_state, save

IDS = TokenIds(bos=1, eos=2, boi=3, eoi=4)


def tiny(**sizes: int) -> UnifiedConfig:
    return UnifiedConfig.tiny(vocab=64, token_ids=IDS, **sizes)


def run(model: UnifiedConfig, **changes: object) -> Run:
    base = Run(
        model=model,
        compute=ComputeConfig(),
        train="all",
        lora=None,
        sharded=False,
        size=64,
        chain="gvcot",
        feedback=("vae", "vit"),
        noise_copies=2,
        rows=4,
        reference=False,
        chains=0,
    )
    return replace(base, **changes)


def kept_by_autograd(model: UnifiedModel, checkpointing: bool) -> float:
    """Floats per token that the forward pass of four chains keeps."""
    latents = torch.randn(16, 64)

    def image() -> Segment:
        return Segment.vae(latents, (4, 4))

    def noise() -> Segment:
        return Segment.noise(latents, 0.5, (4, 4))

    seen = Segment.vit(torch.zeros(3, 64, 64))
    words = Segment.text(torch.full((40,), 7))
    sample = [image(), seen, words, noise(), noise(), image(), seen, noise(), noise()]
    packed = pack([sample] * 4, model.config)
    model.compute_as(ComputeConfig(activation_checkpointing=checkpointing))
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(packed)
    return sum(x.untyped_storage().nbytes() for x in kept.values()) / 4 / len(packed.token_ids_L)


@pytest.mark.parametrize(
    "sizes",
    [{}, {"hidden": 256, "mlp": 256}, {"hidden": 64, "mlp": 768, "heads": 2, "kv_heads": 1}, {"layers": 8}],
)
def test_activations_are_what_autograd_keeps(sizes: dict[str, int]) -> None:
    config = tiny(**sizes)
    planned = activation_floats(config, ComputeConfig())
    assert kept_by_autograd(UnifiedModel(config), False) == pytest.approx(planned, rel=0.2)
    fewer = activation_floats(config, ComputeConfig(activation_checkpointing=True))
    # beside the layers' inputs, the plan has one layer that is computed again, which comes later
    assert config.llm.layers * config.llm.hidden < kept_by_autograd(UnifiedModel(config), True) < fewer


def test_weights_and_optimizer_are_what_training_allocates(policy_folder: Path) -> None:
    model = load_pretrained(policy_folder).model
    stage = SFTConfig(name="t", codec="", mix={"gvcot": 1.0}, steps=1, lora=LoRAConfig(rank=2))
    state = new_state(stage, model)
    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    slots = [v for slot in state.optimizer.state.values() for v in slot.values() if v.ndim]
    found = plan(run(model.config, lora=LoRAConfig(rank=2)), 1)

    def size(tensors: object) -> int:
        return sum(x.numel() * x.element_size() for x in tensors)  # pyright: ignore[reportGeneralTypeIssues]

    plain = [p for name, p in model.named_parameters()]
    assert found.lines["weights"] == size(plain)
    assert found.lines["optimizer and average"] == size([*slots, *state.ema.weights.values()])
    assert found.lines["gradients"] == size(p.grad for p in state.parameters.values())


def test_tokens_by_hand() -> None:
    # 16 latent and 16 ViT tokens an image, each block with 2 boundaries; 96 tokens of text
    assert context_tokens(run(tiny())) == 96 + 2 * (18 + 18)
    assert training_tokens(run(tiny())) == 96 + 2 * (18 + 18) + 2 * 2 * 18
    assert training_tokens(run(tiny(), chain="direct", noise_copies=1)) == 96 + 18 + 18 + 18
    assert context_tokens(run(tiny(), feedback=("vae",))) == 96 + 18 + 18 + 18


def test_shards_divide_what_is_held_and_not_what_is_computed() -> None:
    config = tiny()
    one = plan(run(config, sharded=True), 1)
    eight = plan(run(config, sharded=True), 8)
    for name in ("weights", "optimizer and average", "gradients"):
        assert eight.lines[name] == one.lines[name] / 8
    assert eight.lines["activations (update)"] == one.lines["activations (update)"]
    assert "gathered layers (update)" not in one.lines
    assert eight.lines["gathered layers (update)"] == (2 * 4 + 4) * count(run(config)).largest_layer


def test_drawing_and_updating_do_not_coincide() -> None:
    found = Plan(
        lines={"weights": 10.0, "activations (update)": 5.0, "cache (drawing)": 3.0, "model (drawing)": 4.0},
        tokens_per_row=1,
        checkpoint_bytes=0,
        export_bytes=0,
    )
    assert found.peak() == 17.0
    assert fits(replace(found, lines={"weights": 0.9 * GIB}), 1.0)
    assert not fits(replace(found, lines={"weights": 0.95 * GIB}), 1.0)


def test_a_process_that_encodes_beside_worker_0_is_counted() -> None:
    config = load(SFTConfig, "sft/bagel7b-stage2")
    streamed = plan(run_of(config, BAGEL_7B, None, 8), 8)
    bounded = replace(config, data=replace(config.data, num_samples=100))
    without = plan(run_of(bounded, BAGEL_7B, None, 8), 8)
    assert streamed.peak() - without.peak() == streamed.lines["encoder beside worker 0"] > 3 * GIB
    assert without.lines["codec"] == 4 * 83_819_683


def test_adapters_need_no_second_copy_and_little_more() -> None:
    config = tiny()
    whole = plan(run(config, reference=True), 1)
    adapted = plan(run(config, lora=LoRAConfig(rank=4)), 1)
    assert whole.lines["reference"] == whole.lines["weights"]
    assert "reference" not in adapted.lines
    assert adapted.lines["optimizer and average"] < 0.1 * whole.lines["optimizer and average"]


def test_from_the_command_line(policy_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(policy_folder, tmp_path / "model")
    call = ["doctor", "--plan", "rl/tiny", "--gpus", "2", "--model", str(tmp_path / "model"), "group_size=8"]
    good = CliRunner().invoke(app, call)
    assert good.exit_code == 0, good.output
    assert "fits" in good.output
    assert "key-value cache" in good.output
    bad = CliRunner().invoke(app, [*call, "--gpu-gib", "0.001"])
    assert bad.exit_code == 1
    assert "does not fit" in bad.output


def test_a_stage_that_starts_from_nothing_needs_a_model() -> None:
    result = CliRunner().invoke(app, ["doctor", "--plan", "sft/tiny-base"])
    assert isinstance(result.exception, ConfigError) or result.exit_code != 0


BAGEL_7B = UnifiedConfig(
    llm=LLMConfig(hidden=3584, layers=28, heads=28, kv_heads=4, mlp=18944, vocab=152064),
    vit=ViTConfig(hidden=1152, layers=26, heads=16, mlp=4304, patch=14, max_side=70),
    codec=CodecConfig(kind="flux", width=128),
    latent_patch=2,
    max_latent=64,
    token_ids=QWEN2_TOKEN_IDS,
)
"""The layout of the published model; its names and shapes are held to a manifest elsewhere."""


@pytest.mark.parametrize(
    "recipe", [name for name in recipe_names() if name.split("/")[1].startswith("bagel7b")]
)
def test_the_7b_recipes_fit_eight_gpus_of_80_gib(recipe: str) -> None:
    config = load(RLConfig if recipe.startswith("rl/") else SFTConfig, recipe)
    described = run_of(config, BAGEL_7B, None, 8)
    counts = count(described)
    adapters = counts.trained if described.lora else 0
    assert counts.parameters - adapters == pytest.approx(14.607e9, rel=1e-4)
    assert fits(plan(described, 8), 80)
    if not described.lora:
        assert not fits(plan(replace(described, sharded=False), 8), 80)


def test_the_cache_is_what_drawing_allocates() -> None:
    """Three chains at the moment when their last image is drawn: words, source and reasoning image."""
    config = tiny()
    model, cache = UnifiedModel(config), UnifiedModel(config).new_cache(3)
    words = Segment.text(torch.full((TEXT_TOKENS - BOUNDARIES,), 7))
    image, seen = Segment.vae(torch.randn(16, 64), (4, 4)), Segment.vit(torch.zeros(3, 64, 64))
    for segment in (words, image, seen, image, seen):
        with torch.no_grad():
            model.prefill(cache, [segment] * 3)
    held = sum(part.nbytes for layer in cache.layers if layer is not None for part in layer)
    assert plan(run(config, chains=3), 1).lines["key-value cache (drawing)"] == held


def test_checkpoints_are_as_large_as_planned(policy_folder: Path, tmp_path: Path) -> None:
    model = load_pretrained(policy_folder).model
    stage = SFTConfig(name="t", codec="", mix={"gvcot": 1.0}, steps=1)
    state = new_state(stage, model)
    for parameter in state.parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    opened = RunDir.open(tmp_path / "run", stage)
    save(opened, state)
    written = sum(path.stat().st_size for path in opened.checkpoints.rglob("*.safetensors"))
    assert plan(run(model.config), 1).checkpoint_bytes == pytest.approx(written, rel=0.2)  # names, for one
