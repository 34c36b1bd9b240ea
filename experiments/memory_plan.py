"""`gvcot doctor --plan RECIPE`: what a run needs on each GPU, before it is started.

Parameters are counted on the real model (on the meta device, so nothing is allocated), tokens on the real
chain. Activations are an estimate, held to what autograd keeps for the tiny model by a test. Not counted:
fragmentation, and what CUDA and NCCL take for themselves (`RESERVE`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gvcot.chain import CHAINS
from gvcot.config import load, recipe_keys
from gvcot.errors import ConfigError
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.config import UnifiedConfig, ViTConfig
from gvcot.model.pretrained import find_model
from gvcot.types import Feedback
from rl.config import RLConfig
from sft.config import SFTConfig

if TYPE_CHECKING:
    from rich.table import Table

    from gvcot.model.parts import TrainedPart

GIB = 2**30
RESERVE = 0.08
"""Share of a GPU's memory left for CUDA, NCCL and fragmentation."""

BOUNDARIES = 2
"""Tokens around every segment."""

TEXT_TOKENS = 96
"""System prompt and instruction together; BAGEL's tokenizer makes some 60 to 100 of them."""

CODEC_FLOATS = 6
"""Of activations that the codec's decoder holds at once, for each pixel and base channel."""

CONTEXT = 0.5 * GIB
"""What CUDA takes for one more process."""

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """What the arithmetic below starts from."""

    parameters: int
    trained: int
    largest_layer: int
    """Parameters of the largest part that FSDP2 gathers at once: a decoder layer, or all that is none."""

    codec: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What the plan needs to know of a run."""

    model: UnifiedConfig
    compute: ComputeConfig
    train: TrainedPart
    lora: LoRAConfig | None
    sharded: bool
    size: int
    """Pixels per side."""

    chain: str
    feedback: tuple[Feedback, ...]
    noise_copies: int
    """Noisy copies of each image in a training sequence."""

    rows: int
    """Sequences in one forward and backward, on each GPU."""

    reference: bool
    """Whether a frozen copy of the start is kept (RL with a KL term and without adapters)."""

    chains: int
    """Chains that are drawn at once on each GPU; 0: none."""

    streams: bool = False
    """Whether a process beside worker 0 reads and encodes what is trained on, on the same GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Bytes of each kind on one GPU, and what follows."""

    lines: dict[str, float]
    """Name -> bytes; phases that do not coincide ("drawing", "update") are named in brackets."""

    tokens_per_row: int
    checkpoint_bytes: float
    export_bytes: float

    def peak(self) -> float:
        """Bytes at the worst moment."""
        always = sum(v for name, v in self.lines.items() if "(" not in name)
        phases = {name.split("(")[1] for name in self.lines if "(" in name}
        return always + max(
            (sum(v for name, v in self.lines.items() if name.endswith(phase)) for phase in phases),
            default=0.0,
        )


def plan(run: Run, num_gpus: int) -> Plan:
    """What a run needs on each of `num_gpus` GPUs."""
    from gvcot.model.codec import MOST_PIXELS

    counts, llm = count(run), run.model.llm
    width = BYTES[run.compute.dtype]
    shards = num_gpus if run.sharded else 1
    tokens = training_tokens(run)
    gathers = run.sharded and (num_gpus > 1 or run.compute.dtype != "float32")
    lines = {
        "weights": 4.0 * counts.parameters / shards,
        "optimizer and average": 12.0 * counts.trained / shards,
        "reference": 4.0 * counts.parameters / shards if run.reference else 0.0,
        "gradients": 4.0 * counts.trained / shards,
        "codec": 4.0 * counts.codec,
        "activations (update)": width * activation_floats(run.model, run.compute) * tokens * run.rows,
        "gathered layers (update)": (2.0 * width + 4.0) * counts.largest_layer if gathers else 0.0,
    }
    if run.train == "all" and run.lora is None and run.model.vit is not None:
        patches = image_tokens(run)[1] * (1 + ("vit" in run.feedback) * (len(CHAINS[run.chain].phases) - 1))
        kept = width * vit_floats(run.model.vit, run.compute) * patches * run.rows
        lines["ViT's activations (update)"] = float(kept)
    coded = 4.0 * CODEC_FLOATS * run.model.codec.width
    if run.streams:
        lines["encoder beside worker 0"] = 4.0 * counts.codec + coded * MOST_PIXELS + CONTEXT
    if run.chains:
        cached = context_tokens(run) * llm.layers * 2 * llm.kv_heads * llm.head_dim
        lines["gathered model (drawing)"] = float(width * counts.parameters) if gathers else 0.0
        lines["key-value cache (drawing)"] = float(width * cached * run.chains)
        drawn = image_tokens(run)[0] * run.chains
        lines["activations (drawing)"] = float(width * layer_floats(run.model) * drawn)
        lines["coding (drawing)"] = coded * min(run.chains * run.size**2, MOST_PIXELS)
    return Plan(
        lines={name: value for name, value in lines.items() if value},
        tokens_per_row=tokens,
        checkpoint_bytes=16.0 * counts.trained,
        export_bytes=4.0 * counts.parameters,
    )


def plan_recipe(
    recipe: str,
    overrides: Sequence[str],
    num_gpus: int,
    *,
    model: Path | None = None,
    size: int | None = None,
) -> Plan:
    """The plan of an SFT or RL recipe.

    Args:
        model: folder whose configuration is planned for, with or without weights; None: the recipe's start.
        size: see `run_of`.

    Raises:
        ConfigError: the recipe is of another kind, or wrong.
        CheckpointError: the model's folder has no configuration.
    """
    config = load(RLConfig if "rewards" in recipe_keys(recipe) else SFTConfig, recipe, overrides)
    start = config.model if isinstance(config, RLConfig) else config.init
    if model is None and start is None:
        raise ConfigError(f"{recipe} starts from random weights; name a model's folder by --model")
    folder = find_model(str(start)) if model is None else model
    unified = UnifiedConfig.from_bagel_dir(folder).with_images(config.images)
    return plan(run_of(config, unified, size, num_gpus), num_gpus)


def run_of(config: SFTConfig | RLConfig, model: UnifiedConfig, size: int | None, num_gpus: int) -> Run:
    """The run that a recipe describes.

    Args:
        model: of its start.
        size: pixels per side, in place of the recipe's.
        num_gpus: over which its rows and prompts are dealt.

    Raises:
        ConfigError: an SFT recipe that draws no images.
    """
    if isinstance(config, SFTConfig):
        chains = [kind for kind in config.mix if kind in CHAINS and config.mix[kind] > 0]
        if not chains:
            raise ConfigError(f"mix={config.mix} has no chain, so there is nothing to plan for")
        return Run(
            model=model,
            compute=config.compute,
            train=config.train,
            lora=config.lora,
            sharded=config.sharding == "fsdp2",
            size=size or config.model.image_size,
            chain=max(chains, key=lambda name: len(CHAINS[name].phases)),
            feedback=config.feedback,
            noise_copies=config.noise_copies,
            rows=-(-config.batch_size // num_gpus),
            reference=False,
            chains=config.eval.batch,
            streams=config.data.num_samples is None and config.device == "cuda",
        )
    copies = config.rollout.window_size if config.objective == "reverse_window" else config.nft.num_times
    prompts = -(-config.prompts_per_step // num_gpus)
    parts = config.reward_workers.chunks if config.reward_workers.num_workers else 1
    return Run(
        model=model,
        compute=config.compute,
        train=config.optim.train,
        lora=config.lora,
        sharded=config.cluster.sharding == "fsdp2",
        size=size or config.data.size,
        chain=config.chain.name,
        feedback=config.chain.feedback,
        noise_copies=copies,
        rows=min(config.optim.micro_batch, prompts * config.group_size),
        reference=config.loss.kl_coef > 0 and config.lora is None,
        chains=-(-prompts // parts) * config.group_size,
    )


def count(run: Run) -> Counts:
    """Parameters of the run's model and of what it trains."""
    import torch

    from gvcot.model.checkpoint import build_codec
    from gvcot.model.parts import freeze_but
    from gvcot.model.unified import UnifiedModel

    with torch.device("meta"):
        model, codec = UnifiedModel(run.model), build_codec(run.model.codec)
    if run.lora is not None:
        from gvcot.model.lora import add_lora

        add_lora(model, run.lora)
    trained = freeze_but(model, run.train, run.lora)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in model.language_model.model.layers]
    total = sum(p.numel() for p in model.parameters())
    return Counts(
        parameters=total,
        trained=sum(p.numel() for p in trained.values()),
        largest_layer=max(*layers, total - sum(layers)),
        codec=sum(p.numel() for p in codec.parameters()),
    )


def layer_floats(model: UnifiedConfig) -> float:
    """Floats per token that autograd keeps of a decoder layer: inputs of norms, projections and products."""
    llm = model.llm
    keys = llm.kv_heads * llm.head_dim
    return 9.0 * llm.hidden + 6.0 * keys + 4.0 * llm.mlp


def activation_floats(model: UnifiedConfig, compute: ComputeConfig) -> float:
    """Floats per token that are kept from forward to backward."""
    layers = model.llm.layers
    if compute.activation_checkpointing:
        return layers * model.llm.hidden + layer_floats(model)
    return layers * layer_floats(model)


def vit_floats(vit: ViTConfig, compute: ComputeConfig) -> int:
    """What autograd keeps of a trained ViT for each patch."""
    layer = 8 * vit.hidden + 3 * vit.mlp
    return vit.layers * vit.hidden + layer if compute.activation_checkpointing else vit.layers * layer


def image_tokens(run: Run) -> tuple[int, int]:
    """Tokens of one latent image and of one ViT image, with boundaries (0: the model has no ViT)."""
    rows, columns = run.model.latent_grid(run.size, run.size)
    vit = run.model.vit
    if vit is None:
        return rows * columns + BOUNDARIES, 0
    height, width = vit.fit(run.size, run.size)
    return rows * columns + BOUNDARIES, (height // vit.patch) * (width // vit.patch) + BOUNDARIES


def context_tokens(run: Run) -> int:
    """Tokens that stand in the cache when the last image is drawn."""
    latent, seen = image_tokens(run)
    fed_back = ("vae" in run.feedback) * latent + ("vit" in run.feedback) * seen
    return TEXT_TOKENS + latent + seen + (len(CHAINS[run.chain].phases) - 1) * fed_back


def training_tokens(run: Run) -> int:
    """Tokens of one training sequence: its context, and the noisy copies of each image."""
    latent, _ = image_tokens(run)
    return context_tokens(run) + len(CHAINS[run.chain].phases) * run.noise_copies * latent


def table(found: Plan, num_gpus: int, gpu_gib: float) -> Table:
    """The plan as a table, with a verdict."""
    from rich.table import Table

    rows = Table(
        "on each GPU", "GiB", title=f"{num_gpus} x {gpu_gib:g} GiB, {found.tokens_per_row:,} tokens a row"
    )
    for name, value in found.lines.items():
        rows.add_row(name, gib(value))
    rows.add_section()
    rows.add_row("at the worst moment", gib(found.peak()))
    verdict = "[green]fits[/]" if fits(found, gpu_gib) else f"[red]does not fit[/]: {advice(found)}"
    rows.add_row(f"of {gpu_gib * (1 - RESERVE):.1f} usable", verdict)
    rows.add_row("one checkpoint on disk", gib(found.checkpoint_bytes))
    rows.add_row("the exported model", gib(found.export_bytes))
    return rows


def fits(found: Plan, gpu_gib: float) -> bool:
    """Whether the worst moment leaves the reserve."""
    return found.peak() <= gpu_gib * GIB * (1 - RESERVE)


def gib(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / GIB:.2f}"


REMEDIES = {
    "weights": "more GPUs with sharding=fsdp2",
    "optimizer and average": "lora, or train=generation",
    "reference": "lora, which needs no second copy, or loss.kl_coef=0",
    "gradients": "lora, or train=generation",
    "activations (update)": "compute.activation_checkpointing=true, fewer rows at once, or smaller images",
    "gathered layers (update)": "compute.dtype=bfloat16",
    "gathered model (drawing)": "compute.dtype=bfloat16",
    "key-value cache (drawing)": "fewer chains at once, or smaller images",
    "activations (drawing)": "fewer chains at once, or smaller images",
    "ViT's activations (update)": "compute.activation_checkpointing=true, or fewer rows at once",
    "coding (drawing)": "smaller images",
    "codec": "larger GPUs",
    "encoder beside worker 0": "a bounded set (data.num_samples), which is encoded before training",
}


def advice(found: Plan) -> str:
    """What would help most."""
    largest = max(found.lines, key=lambda name: found.lines[name])
    return f"most of it is {largest}; try {REMEDIES[largest]}"
