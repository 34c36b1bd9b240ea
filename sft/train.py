"""Supervised fine-tuning of one stage: build, forward, step, average, log, evaluate, save."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gvcot import checkpoint, distributed, seeds
from gvcot.config import to_dict
from gvcot.data.encoded import load_encoded
from gvcot.data.stream import Epochs, Feed, SceneStream, Shared, StreamConfig
from gvcot.model.checkpoint import load_codec
from gvcot.model.codec import Autoencoder
from gvcot.model.config import CodecConfig, UnifiedConfig
from gvcot.model.parts import freeze_but
from gvcot.model.pretrained import Pretrained, find_model, load_pretrained, save_pretrained
from gvcot.model.sequence import pack
from gvcot.model.tokenizer import Tokenizer, WordTokenizer
from gvcot.model.unified import UnifiedModel
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker
from sft.config import SFTConfig
from sft.ema import EMA
from sft.loss import joint_loss
from sft.muon import Muon, groups
from sft.schedule import peak_share
from sft.stages import BatchBuilder

Evaluate = Callable[[Pretrained, int], dict[str, float]]
"""(model with averaged weights, step) -> metrics; logs its own panels."""


@dataclass(kw_only=True, slots=True)
class State:
    """Everything that a resumed run needs."""

    model: UnifiedModel
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    ema: EMA
    step: int = 0


def train(config: SFTConfig, run: RunDir, tracker: Tracker, evaluate: Evaluate) -> dict[str, float]:
    """Run one stage to its last step, save the averaged weights in `run/final`, return the last metrics.

    Raises:
        CheckpointError: `init`, `codec` or the run's own checkpoint is unusable.
        RuntimeError: the loss is no longer finite.
    """
    with distributed.team(config.workers, _help, config, run.path, run.resumed):
        return _lead(config, run, tracker, evaluate)


def _lead(config: SFTConfig, run: RunDir, tracker: Tracker, evaluate: Evaluate) -> dict[str, float]:
    """Worker 0: it trains, and alone keeps the records."""
    set_threads(config)
    model, codec, tokenizer = starting_point(config)
    state = new_state(config, model)
    restore(run, state)
    metrics: dict[str, float] = {}
    with open_feed(config, model.config, codec) as feed:
        builder = BatchBuilder(config, model.config, feed, tokenizer, codec)
        began, first = time.monotonic(), state.step
        while state.step < config.steps:
            scalars = training_step(config, builder, state)
            if state.step % config.log_every == 0 or state.step == config.steps:
                rate = (time.monotonic() - began) / (state.step - first)
                tracker.log(state.step, scalars | {"time/seconds_per_step": rate})
            if state.step == config.steps or (config.eval.every and state.step % config.eval.every == 0):
                metrics = evaluate(averaged(state, codec, tokenizer), state.step)
                tracker.log(state.step, metrics)
            if state.step % config.save_every == 0 or state.step == config.steps:
                save(run, state)
    final = averaged(state, codec, tokenizer)
    if not metrics:  # resumed after its last step
        metrics = evaluate(final, state.step)
    record = {"config": to_dict(config), "metrics": metrics}
    save_pretrained(run.path / "final", final, record)
    return metrics


def _help(config: SFTConfig, path: Path, resumed: bool) -> None:
    """The other workers: the same steps on their share of the rows."""
    set_threads(config)
    model, codec, tokenizer = starting_point(config)
    state = new_state(config, model)
    restore(RunDir(path=path, resumed=resumed), state)
    with open_feed(config, model.config, codec) as feed:
        builder = BatchBuilder(config, model.config, feed, tokenizer, codec)
        while state.step < config.steps:
            training_step(config, builder, state)


def set_threads(config: SFTConfig) -> None:
    """Torch threads of this worker."""
    torch.set_num_threads(config.threads or max(1, torch.get_num_threads() // config.workers))


@contextmanager
def open_feed(config: SFTConfig, model: UnifiedConfig, codec: Autoencoder) -> Iterator[Feed]:
    """The stage's training scenes: a bounded set, encoded now or earlier, or scenes without end."""
    data, size = config.data, config.model.image_size
    if data.num_samples is not None:
        encoded = load_encoded(
            codec,
            model,
            cache_dir=Path(data.cache_dir),
            seed=data.seed,
            num_samples=data.num_samples,
            size=size,
            world=data.world,
            progress=show_progress if distributed.rank() == 0 else None,
        )
        yield Epochs(encoded, config.batch_size, config.seed)
        return
    order = StreamConfig(
        batch_size=config.batch_size,
        num_steps=config.steps,
        seed=config.seed,
        world_seed=data.seed,
        size=size,
        world=data.world,
        reuse=data.reuse,
        shard=data.shard,
    )
    if distributed.rank() > 0:
        yield Shared(None)
        return
    with closing(SceneStream(order, model, codec)) as stream:
        yield Shared(stream)


def show_progress(ready: int, wanted: int) -> None:
    """Say on one line of the terminal how many scenes are encoded."""
    print(f"encoded scenes {ready}/{wanted}", end="\r", flush=True)


def training_step(config: SFTConfig, builder: BatchBuilder, state: State) -> dict[str, float]:
    """One optimiser step; step k depends on (seed, k) and the state alone."""
    rows = range(distributed.rank(), config.batch_size, distributed.world_size())
    batch = builder.batch(state.step, rows)
    prediction = state.model(pack(batch.samples, state.model.config))
    loss, parts = joint_loss(prediction, batch.target_MD, config.ce_weight, batch.weight_M)
    (total,) = distributed.totals([loss.item() / distributed.world_size()])
    if not math.isfinite(total):
        raise RuntimeError(
            f"the loss became {total} at step {state.step}: lower optim.lr (now {config.optim.lr}) and "
            "resume from the last checkpoint"
        )
    share = peak_share(config.optim, state.step, config.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * share
    state.optimizer.zero_grad()
    loss.backward()
    distributed.average_gradients(state.parameters.values())
    norm = torch.nn.utils.clip_grad_norm_(state.parameters.values(), config.optim.grad_clip)
    state.optimizer.step()
    state.ema.update(state.parameters)
    state.step += 1
    return {"sft/loss": total, "sft/grad_norm": norm.item(), "sft/lr": config.optim.lr * share} | {
        f"sft/{name}": value for name, value in parts.items()
    }


def starting_point(config: SFTConfig) -> tuple[UnifiedModel, Autoencoder, Tokenizer]:
    """The stage's model (loaded, or new with seeded weights), its codec and tokenizer."""
    if config.init is not None:
        start = load_pretrained(find_model(config.init), images=config.images)
        return start.model, start.codec, start.tokenizer
    tokenizer = WordTokenizer()
    sizes = config.model
    model_config = UnifiedConfig.tiny(
        vocab=tokenizer.vocab_size,
        token_ids=tokenizer.token_ids,
        image_size=sizes.image_size,
        hidden=sizes.hidden,
        layers=sizes.layers,
        mlp=3 * sizes.hidden,
        codec=CodecConfig(kind="tiny", width=sizes.codec_width),
    ).with_images(config.images)
    codec = load_codec(Path(config.codec), model_config.codec)
    model = UnifiedModel(model_config)
    model.init_weights(seeds.generator("init", config.seed))
    return model, codec, tokenizer


def new_state(config: SFTConfig, model: UnifiedModel) -> State:
    """Optimiser and average over the parameters that the stage trains; the others are frozen."""
    parameters, optim = freeze_but(model, config.train), config.optim
    settings = {"lr": optim.lr, "betas": optim.betas, "weight_decay": optim.weight_decay}
    if optim.matrix_lr is None:
        optimizer = torch.optim.AdamW(parameters.values(), **settings)
    else:
        optimizer = Muon(groups(parameters, optim.lr, optim.matrix_lr), **settings)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return State(
        model=model, parameters=parameters, optimizer=optimizer, ema=EMA(parameters, config.optim.ema_decay)
    )


def averaged(state: State, codec: Autoencoder, tokenizer: Tokenizer) -> Pretrained:
    """A copy of the model with the averaged weights."""
    model = copy.deepcopy(state.model).requires_grad_(False)
    model.load_state_dict(state.ema.weights, strict=False)
    return Pretrained(model=model, codec=codec, tokenizer=tokenizer)


def save(run: RunDir, state: State) -> None:
    """Write the state aside, then make it the run's newest checkpoint."""
    tensors = {
        "weights": {n: p.detach() for n, p in state.parameters.items()},
        "ema": state.ema.weights,
        "optimizer": distributed.full_optimizer_state(state.model, state.optimizer),
    }
    with run.save_checkpoint(state.step) as folder:
        checkpoint.save_state(folder, tensors, {"step": state.step})


@torch.no_grad()
def restore(run: RunDir, state: State) -> None:
    """Continue from the run's newest checkpoint, if it has one."""
    newest = run.latest_checkpoint()
    if newest is None:
        return
    tensors, meta = checkpoint.load_state(newest.path)
    state.step = state.ema.num_updates = meta["step"]
    state.ema.weights = tensors["ema"]
    for name, parameter in state.parameters.items():
        parameter.copy_(tensors["weights"][name])
    distributed.load_full_optimizer_state(state.model, state.optimizer, tensors["optimizer"])
