"""Measures BAGEL-7B-MoT's layout with random weights on one GPU, beside what the memory plan predicts.

    python docs/measured/gpu_7b.py OUT.json [PART...]    parts: alike attention load rollout sft rl full

Each part is a line of JSON as soon as it is done; a part that fails says why and the others go on. It needs a
GPU of some 100 GiB, 30 GB of disk beside OUT.json for the folder that `load` writes, and no weights. Not run
on a GPU yet.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from experiments import memory_plan
from gvcot import distributed
from gvcot.chain import Chain
from gvcot.model.checkpoint import build_codec, manifest
from gvcot.model.compute import ComputeConfig, LoRAConfig
from gvcot.model.config import QWEN2_TOKEN_IDS, UnifiedConfig
from gvcot.model.parts import freeze_but
from gvcot.model.place import place
from gvcot.model.sequence import Segment, pack
from gvcot.model.unified import UnifiedModel
from gvcot.sampler import Drawn, draw
from gvcot.types import ChainConfig, Condition, Window

GIB, SIZE, TEXT = 2**30, 512, 32
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200, by its data sheet."""

LORA = LoRAConfig(rank=64, alpha=128.0)
CHAIN_CONFIG = ChainConfig()


class Words:
    """Ids for texts of whatever words: what they are does not change what they cost."""

    vocab_size, token_ids = 152_064, QWEN2_TOKEN_IDS

    def encode(self, text: str) -> list[int]:
        return [1000 + hash(word) % 1000 for word in text.split()]


def layout(layers: int = 28) -> UnifiedConfig:
    """BAGEL-7B-MoT, with fewer decoder layers where asked for."""
    llm = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_hidden_layers": layers,
    }
    llm |= {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "vocab_size": 152064}
    llm |= {"hidden_act": "silu", "tie_word_embeddings": False}
    vit = {"hidden_size": 1152, "image_size": 980, "intermediate_size": 4304, "num_attention_heads": 16}
    vit |= {"num_hidden_layers": 27, "patch_size": 14, "model_type": "siglip_vision_model"}
    with tempfile.TemporaryDirectory() as name:
        for file, content in (("config", {}), ("llm_config", llm), ("vit_config", vit)):
            (Path(name) / f"{file}.json").write_text(json.dumps(content))
        return UnifiedConfig.from_bagel_dir(Path(name))


def write_random(config: UnifiedConfig, folder: Path) -> None:
    """A folder of bfloat16 weights, in shards of a few GB."""
    generator, shard, size, index = torch.Generator("cuda").manual_seed(0), {}, 0, {}
    shapes = manifest(config)
    for i, (name, shape) in enumerate(shapes.items()):
        if len(shape) == 1:
            tensor = torch.full(shape, float("norm" in name and name.endswith("weight")), device="cuda")
        else:
            tensor = torch.randn(shape, device="cuda", generator=generator) * 0.7 * shape[-1] ** -0.5
        shard[name] = tensor.bfloat16().cpu()
        size += shard[name].nbytes
        if size > 4e9 or i == len(shapes) - 1:
            file = f"model-{len(set(index.values())):05d}.safetensors"
            save_file(shard, folder / file)
            index |= dict.fromkeys(shard, file)
            shard, size = {}, 0
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def random_init(model: UnifiedModel) -> None:
    """Weights of a sharded or plain model that stay in a sensible range."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".lora_" in name:
                continue
            if p.ndim == 1:
                p.fill_(float("norm" in name and name.endswith("weight")))
            else:
                p.normal_(0, 0.7 * p.shape[-1] ** -0.5)
        for _, buffer in model.named_buffers():
            buffer.normal_(0, 0.02)


class Clock:
    """Seconds and peak memory of a block on the GPU."""

    def __enter__(self) -> Clock:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.start
        self.peak_gib = torch.cuda.max_memory_allocated() / GIB
        self.record = {"seconds": round(self.seconds, 3), "peak_gib": round(self.peak_gib, 2)}


def condition(config: UnifiedConfig, prompts: int, size: int = SIZE) -> Condition:
    generator, grid = torch.Generator().manual_seed(1), config.latent_grid(size, size)
    height, width = config.vit.fit(size, size)
    return Condition(
        source_latent_BND=torch.randn(prompts, grid[0] * grid[1], config.latent_dim, generator=generator),
        source_vit_B3HW=torch.rand(prompts, 3, height, width, generator=generator) * 2 - 1,
        instruction_BT=torch.randint(1000, 2000, (prompts, TEXT), generator=generator),
        grid=grid,
    )


def rows_of(config: UnifiedConfig, chain: Chain, num: int, size: int = SIZE) -> list[list[Segment]]:
    """Training sequences of the gvcot chain, one noise level for each image."""
    given = condition(config, num, size)
    out = []
    for row in range(num):
        x_cot, noisy = torch.randn(2, *given.source_latent_BND.shape[1:]).unbind()
        out.append(
            [
                *chain.prefix(given, row),
                Segment.noise(noisy, 0.7, given.grid),
                *chain.feedback(x_cot, given.source_vit_B3HW[row], given.grid),
                Segment.noise(noisy, 0.4, given.grid),
            ]
        )
    return out


def step_of(model: UnifiedModel, optimizer: torch.optim.Optimizer, rows: list[list[Segment]]) -> Clock:
    """One supervised step on the flow loss."""
    packed = pack(rows, model.config)
    with Clock() as clock:
        optimizer.zero_grad()
        said = model(packed).velocity_MD
        (said - torch.randn_like(said)).square().mean().backward()
        distributed.clip_gradients([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
    return clock


def planned(config: UnifiedConfig, **run: object) -> dict[str, float]:
    """What the memory plan says, in GiB."""
    plain = {
        "model": config,
        "compute": COMPUTE,
        "train": "all",
        "lora": None,
        "sharded": True,
        "size": SIZE,
        "chain": "gvcot",
        "feedback": CHAIN_CONFIG.feedback,
        "noise_copies": 1,
        "rows": 1,
        "reference": False,
        "chains": 0,
    }
    found = memory_plan.plan(memory_plan.Run(**(plain | run)), 1)
    lines = {name: round(value / GIB, 2) for name, value in found.lines.items()}
    return {"peak": round(found.peak() / GIB, 2), "tokens_per_row": found.tokens_per_row} | lines


COMPUTE = ComputeConfig(dtype="bfloat16", activation_checkpointing=True)


class Shared:
    """The model with adapters, which several parts use."""

    model: UnifiedModel | None = None
    chain: Chain
    drawn: Drawn


def alike() -> dict:
    """The tiny warm start draws the same on both devices; bfloat16 through FSDP2 nearly so."""
    from gvcot.data import scenes
    from gvcot.model.pretrained import WARM_START, find_model, load_pretrained
    from gvcot.sampler import condition_of, ode_denoiser
    from gvcot.seeds import derive, noise_BND

    policy, images = load_pretrained(find_model(WARM_START)), {}
    chain = Chain(CHAIN_CONFIG, policy.tokenizer, has_vit=True)
    samples = scenes.samples("val", range(4))
    given = condition_of(samples, policy.model.config, policy.codec, chain)
    mesh = distributed.init_process_group("cuda")
    for name in ("cpu", "cuda", "cuda segments", "cuda bf16"):
        model = copy.deepcopy(policy.model)
        if name == "cuda bf16":
            place(model, device="cuda", compute=ComputeConfig(dtype="bfloat16"), mesh=mesh)
        else:
            attention = "segments" if "segments" in name else "auto"
            place(model, device=name.split()[0], compute=ComputeConfig(attention=attention))
        images[name] = draw(
            model,
            policy.codec.to(name.split()[0]),
            chain,
            given,
            denoise=ode_denoiser(8, 3.0),
            noise=lambda n, shape: noise_BND([derive(i, n) for i in range(4)], shape[1:]),
        ).images["x_edit"]
    exact = images["cpu"]
    return {
        name: ((image - exact).square().mean() / exact.square().mean()).sqrt().item()
        for name, image in images.items()
    }


def attention() -> dict:
    """Forward and backward of two layers at the 7B width: a mask, and segments, at several lengths."""
    config, out = layout(2), {}
    model = UnifiedModel(config).to("cuda", torch.bfloat16)
    random_init(model)
    chain = Chain(CHAIN_CONFIG, Words(), has_vit=True)
    for size, rows in ((256, 4), (512, 2), (1024, 1)):
        packed = pack(rows_of(config, chain, rows, size), config)
        for how in ("dense", "segments"):
            model.compute_as(ComputeConfig(attention=how))
            try:
                for _ in range(3):  # the last one counts
                    with Clock() as clock:
                        model(packed).velocity_MD.square().mean().backward()
                    model.zero_grad()
                found = clock.record
            except torch.OutOfMemoryError:
                found = {"out of memory": True}
            out[f"{how} {size}px"] = found | {"tokens": sum(packed.sample_lens), "rows": rows}
    return out


def load() -> dict:
    """Write a folder, then shard an empty model and fill it, tensor by tensor."""
    config = layout()
    with tempfile.TemporaryDirectory(dir=Path(sys.argv[1]).parent) as name:
        folder = Path(name)
        with Clock() as writing:
            write_random(config, folder)
        with torch.device("meta"):
            model = UnifiedModel(config)
        mesh = distributed.init_process_group("cuda")
        with Clock() as clock:
            place(model, device="cuda", compute=COMPUTE, lora=LORA, mesh=mesh, folder=folder)
    Shared.model, Shared.chain = model, Chain(CHAIN_CONFIG, Words(), has_vit=True)
    parameters = sum(p.numel() for p in model.parameters())
    return clock.record | {"write_seconds": round(writing.seconds, 1), "parameters": parameters}


def rollout() -> dict:
    """Four chains of two images at 512 pixels, 15 steps each, as the LoRA recipe draws them."""
    from rollout.config import RolloutConfig
    from rollout.sample import chain_noise, window_denoiser

    model, options = Shared.model, RolloutConfig(num_steps=15, shift=3.0, window_range=(0, 7))
    codec = build_codec(model.config.codec).to("cuda").eval()
    windows = {name: Window(start=2, size=2) for name in ("x_cot", "x_edit")}
    with Clock() as clock, distributed.gathered(model):
        Shared.drawn = draw(
            model,
            codec,
            Shared.chain,
            condition(model.config, 1),
            denoise=window_denoiser(options, windows, [1, 2, 3, 4]),
            noise=chain_noise([1, 2, 3, 4]),
            chains_per_prompt=4,
        )
    finite = all(image.isfinite().all().item() for image in Shared.drawn.images.values())
    return clock.record | {
        "seconds_per_chain": round(clock.seconds / 4, 2),
        "finite": finite,
        "plan": planned(model.config, lora=LORA, chains=4),
    }


def sft() -> dict:
    """A supervised step of adapters on two rows of the whole chain."""
    model = Shared.model
    trained = list(freeze_but(model, "all", LORA).values())
    optimizer, rows = torch.optim.AdamW(trained, lr=1e-5), rows_of(model.config, Shared.chain, 2)
    clocks = [step_of(model, optimizer, rows) for _ in range(3)]
    tokens = sum(pack(rows, model.config).sample_lens)
    return clocks[-1].record | {
        "first_step": clocks[0].record,
        "tokens": tokens,
        "tokens_per_second": round(tokens / clocks[-1].seconds),
        "trained": sum(p.numel() for p in trained),
        "plan": planned(model.config, lora=LORA, rows=2),
    }


def rl() -> dict:
    """An update of adapters on the four chains that were drawn, and how far replay is from the rollout."""
    from rewards.config import RewardConfig
    from rl.config import ClusterConfig, LossConfig, RLConfig, RLOptimConfig
    from rl.learner import Learner, Update
    from rl.objectives import Drawn as Rollout
    from rollout.config import RolloutConfig

    config = RLConfig(
        name="gpu",
        model="",
        steps=1,
        prompts_per_step=1,
        group_size=4,
        rewards={"mask_iou": RewardConfig(type="mask_iou")},
        rollout=RolloutConfig(num_steps=15, shift=3.0, window_range=(0, 7)),
        loss=LossConfig(clip_range=1e-5, kl_coef=0.01),
        optim=RLOptimConfig(lr=1e-4, micro_batch=1),
        lora=LORA,
        cluster=ClusterConfig(num_workers=1),
    )
    learner = Learner(config, Shared.model, Shared.chain, world_size=1)
    data = Update(
        drawn=Rollout(
            trajectory=Shared.drawn.trajectory,
            prompt_B=torch.zeros(4, dtype=torch.long),
            chain_seeds_B=[1, 2, 3, 4],
        ),
        advantage_BK=torch.tensor([[1.0, 1.0], [-1.0, -1.0], [0.5, -0.5], [-0.5, 0.5]]),
        kept_BK=torch.ones(4, 2, dtype=torch.bool),
        num_kept=8.0,
    )
    with Clock() as clock:
        metrics = learner.update(data, 0)
    with Clock() as second:
        learner.update(data, 1)
    kept = {k: v for k, v in metrics.items() if "gap" in k or "ratio" in k or k in ("loss", "grad_norm")}
    plan = planned(Shared.model.config, lora=LORA, noise_copies=2)
    return second.record | {"first_update": clock.record, "metrics": kept, "plan": plan}


def full(layers: int = 9) -> dict:
    """Everything trained, AdamW with float32 master weights: as many layers as fit."""
    Shared.model = None
    config = layout(layers)
    with torch.device("meta"):
        model = UnifiedModel(config)
    mesh = distributed.init_process_group("cuda")
    model.compute_as(COMPUTE)
    distributed.shard(model, mesh, model.language_model.model.layers, compute_dtype=torch.bfloat16)
    model.to_empty(device="cuda")
    random_init(model)
    chain = Chain(CHAIN_CONFIG, Words(), has_vit=True)
    parameters = list(freeze_but(model, "all").values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    out = {}
    for rows in (1, 2, 4):
        data = rows_of(config, chain, rows)
        try:
            clock = [step_of(model, optimizer, data) for _ in range(3)][-1]
        except torch.OutOfMemoryError:
            out[f"rows {rows}"] = {"out of memory": True}
            break
        packed = pack(data, config)
        flops = 6 * flops_per_forward(config, packed)
        out[f"rows {rows}"] = clock.record | {
            "tokens": sum(packed.sample_lens),
            "mfu": round(flops / clock.seconds / PEAK_FLOPS, 3),
            "plan": planned(config, rows=rows),
        }
    out["parameters"] = sum(p.numel() for p in model.parameters())
    out["layers"] = layers
    out["state_gib"] = round(torch.cuda.memory_allocated() / GIB, 2)
    return out


def flops_per_forward(config: UnifiedConfig, packed: object) -> float:
    """Multiply-adds of the matrices that each token meets: one expert's layers, the ViT for its patches.

    Attention's own products, the second pass of checkpointing and the embeddings are left out, so MFU is on
    the low side.
    """
    llm, vit = config.llm, config.vit
    head = llm.hidden * llm.hidden + 2 * llm.hidden * llm.kv_heads * llm.head_dim + llm.hidden * llm.hidden
    per_token = llm.layers * (head + 3 * llm.hidden * llm.mlp)
    patches = sum(
        p.shape[0] * (p.shape[-2] // vit.patch) * (p.shape[-1] // vit.patch) for p in packed.vit_pixels
    )
    return float(
        sum(packed.sample_lens) * per_token
        + patches * vit.layers * (4 * vit.hidden**2 + 2 * vit.hidden * vit.mlp)
    )


PARTS: dict[str, Callable[[], dict]] = {
    f.__name__: f for f in (alike, attention, load, rollout, sft, rl, full)
}


def main() -> None:
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(PARTS)
    card = torch.cuda.get_device_properties(0)
    found: dict[str, object] = {"device": card.name, "gib": round(card.total_memory / GIB, 1)}
    found["torch"] = torch.__version__
    for name in names:
        start = time.perf_counter()
        try:
            found[name] = PARTS[name]()
        except Exception as error:  # noqa: BLE001  the machine is not here for long
            found[name] = {"error": repr(error)[:500], "where": traceback.format_exc()[-1500:]}
        print(name, round(time.perf_counter() - start, 1), json.dumps(found[name]), flush=True)
        out.write_text(json.dumps(found, indent=1))
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
