"""Supervised fine-tuning of one stage: build, forward, step, average, log, evaluate, save."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gvcot import checkpoint, distributed, seeds
from gvcot.config import to_dict
from gvcot.data.encoded import load_encoded
from gvcot.data.pairs.bad_log import BadLog
from gvcot.data.pairs.dataset import Bad, PairDataset, check_share
from gvcot.data.source import PairSource, SceneSource, Source
from gvcot.data.stream import Epochs, Feed, SceneStream, Shared, StreamConfig
from gvcot.errors import CheckpointError
from gvcot.model.checkpoint import load_codec
from gvcot.model.codec import Autoencoder
from gvcot.model.config import CodecConfig, UnifiedConfig
from gvcot.model.parts import freeze_but
from gvcot.model.place import place
from gvcot.model.pretrained import Pretrained, find_model, load_pretrained, save_pretrained
from gvcot.model.sequence import pack
from gvcot.model.tokenizer import WordTokenizer
from gvcot.model.unified import UnifiedModel
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker
from sft.config import DataConfig, SFTConfig
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
    feed: dict[str, int] = field(default_factory=dict)
    """Where the training samples go on; see `Feed.state`."""


def train(config: SFTConfig, run: RunDir, tracker: Tracker, evaluate: Evaluate) -> dict[str, float]:
    """Run one stage to its last step, save the averaged weights in `run/final`, return the last metrics.

    Raises:
        CheckpointError: `init`, `codec` or the run's own checkpoint is unusable.
        RuntimeError: the loss is no longer finite.
    """
    with distributed.team(config.workers, _help, config, run.path, run.resumed, device=config.device):
        return _work(config, run, tracker, evaluate)


def follow(config: SFTConfig) -> None:
    """What a process does that a launcher has started as another worker than the first."""
    distributed.follow(config.workers, _help, device=config.device)


def _help(config: SFTConfig, path: Path, resumed: bool) -> None:
    """The other workers: the same steps on their share of the rows, and no records."""
    _work(config, RunDir(path=path, resumed=resumed), None, None)


def _work(
    config: SFTConfig, run: RunDir, tracker: Tracker | None, evaluate: Evaluate | None
) -> dict[str, float]:
    """Every worker's steps. Worker 0 alone has a tracker and evaluates."""
    set_threads(config)
    start = starting_point(config)
    start.codec.to(config.device)
    state = new_state(config, start.model)
    restore(run, state)
    if distributed.from_leader(state.step) != state.step:
        raise CheckpointError(
            f"worker {distributed.rank()} is at step {state.step}, another one than worker 0: it sees "
            f"another {run.path}. The run's folder must lie at the same path on all machines"
        )
    metrics: dict[str, float] = {}
    bad = BadLog(run.path)
    with open_feed(config, start.model.config, start.codec, state.feed) as feed:
        builder = BatchBuilder(config, start.model.config, feed, start.tokenizer, start.codec)
        began, first = time.monotonic(), state.step
        while state.step < config.steps:
            scalars = training_step(config, builder, state)
            last = state.step == config.steps
            if tracker is not None and (last or state.step % config.log_every == 0):
                rate = (time.monotonic() - began) / (state.step - first)
                tracker.log(state.step, scalars | bad.count(feed.bad) | {"time/seconds_per_step": rate})
            if last or (config.eval.every and state.step % config.eval.every == 0):
                metrics = evaluated(config, state, start, evaluate)
                if tracker is not None:
                    tracker.log(state.step, metrics)
            if last or state.step % config.save_every == 0:
                state.feed = feed.state(state.step)
                save(run, state)
    if first == config.steps:  # resumed after its last step
        metrics = evaluated(config, state, start, evaluate)
    with averaged(state):
        weights = plain_weights(config, state)
    if distributed.rank() == 0:
        final = UnifiedModel(start.model.config)
        final.load_state_dict(weights)
        record = {"config": to_dict(config), "metrics": metrics}
        save_pretrained(run.path / "final", replace(start, model=final), record)
    if distributed.launched():  # a launcher does not wait long for the last one
        distributed.barrier()
    return metrics


def evaluated(
    config: SFTConfig, state: State, start: Pretrained, evaluate: Evaluate | None
) -> dict[str, float]:
    """Metrics of the averaged weights, on worker 0. *Collective* where the model is sharded."""
    metrics: dict[str, float] = {}
    with averaged(state), distributed.gathered(state.model):
        if evaluate is not None:
            metrics = evaluate(start, state.step)
        if config.sharding == "fsdp2":
            distributed.barrier()
    return metrics


def set_threads(config: SFTConfig) -> None:
    """Torch threads of this worker."""
    torch.set_num_threads(config.threads or distributed.cores_here(config.workers))


@contextmanager
def open_feed(
    config: SFTConfig, model: UnifiedConfig, codec: Autoencoder, state: Mapping[str, int] | None = None
) -> Iterator[Feed]:
    """The stage's training samples: a bounded set, encoded now or earlier, or samples without end.

    Args:
        config: which samples.
        model: geometry of latents.
        codec: encodes.
        state: of the feed of a run that goes on.
    """
    data, size = config.data, config.model.image_size
    if data.num_samples is not None:
        bad: list[Bad] = []
        encoded = load_encoded(
            codec,
            model,
            training_source(data, size),
            cache_dir=Path(data.cache_dir),
            num_samples=data.num_samples,
            size=size,
            progress=show_progress if distributed.rank() == 0 else None,
            report=bad.extend,
        )
        if data.pairs is not None:  # those of an earlier run's cache, too
            check_share(data.pairs, bad, len(bad) + len(encoded))
        yield Epochs(encoded, config.batch_size, config.seed, bad)
        return
    order = StreamConfig(
        batch_size=config.batch_size,
        num_steps=config.steps,
        seed=config.seed,
        world_seed=data.seed,
        size=size,
        world=data.world,
        pairs=data.pairs,
        reuse=data.reuse,
        shard=data.shard,
    )
    if distributed.rank() > 0:
        yield Shared(None)
        return
    with closing(SceneStream(order, model, codec, state)) as stream:
        yield Shared(stream)


def training_source(data: DataConfig, size: int) -> Source:
    """What a bounded set is encoded from."""
    if data.pairs is None:
        return SceneSource(seed=data.seed, size=size, world=data.world)
    return PairSource(PairDataset(data.pairs, size=size, need_target=True))


def show_progress(ready: int, wanted: int) -> None:
    """Say on one line of the terminal how many samples are encoded."""
    print(f"encoded samples {ready}/{wanted}", end="\r", flush=True)


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
    if config.sharding == "replicate":
        distributed.average_gradients(state.parameters.values())
    norm = distributed.clip_gradients(state.parameters.values(), config.optim.grad_clip)
    state.optimizer.step()
    state.ema.update(state.parameters)
    state.step += 1
    return {"sft/loss": total, "sft/grad_norm": norm, "sft/lr": config.optim.lr * share} | {
        f"sft/{name}": value for name, value in parts.items()
    }


def starting_point(config: SFTConfig, *, whole: bool = False) -> Pretrained:
    """The stage's model (loaded, or new with seeded weights), its codec and tokenizer.

    Args:
        whole: with weights in any case; else a model that is loaded to be sharded is on the meta device.
    """
    if config.init is not None:
        whole = whole or config.sharding != "fsdp2"
        return load_pretrained(find_model(config.init), images=config.images, weights=whole)
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
    return Pretrained(model=model, codec=codec, tokenizer=tokenizer)


def new_state(config: SFTConfig, model: UnifiedModel) -> State:
    """The model where and as it is trained, an optimiser and an average of what moves; the rest is frozen.
    *Collective* where the model is sharded."""
    place(
        model,
        device=config.device,
        compute=config.compute,
        lora=config.lora,
        seed=config.seed,
        mesh=distributed.init_process_group(config.device) if config.sharding == "fsdp2" else None,
        folder=None if config.init is None else find_model(config.init),
    )
    parameters, optim = freeze_but(model, config.train, config.lora), config.optim
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


@contextmanager
def averaged(state: State) -> Iterator[None]:
    """Inside the block the model holds the moving average of its weights."""
    trained = {name: p.detach().clone() for name, p in state.parameters.items()}
    _copy(state, state.ema.weights)
    try:
        yield
    finally:
        _copy(state, trained)


@torch.no_grad()
def _copy(state: State, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in state.parameters.items():
        parameter.copy_(weights[name])


def plain_weights(config: SFTConfig, state: State) -> dict[str, Tensor]:
    """The weights of a model without adapters that computes the same, on worker 0. *Collective* where the
    model is sharded."""
    weights = distributed.full_state_dict(state.model)
    if config.lora is None or not weights:
        return weights
    from gvcot.model.lora import merged

    return merged(state.model, weights)


def save(run: RunDir, state: State) -> None:
    """Write the state aside, then make it the run's newest checkpoint: worker 0 does. *Collective* where the
    model is sharded."""
    tensors = {
        "weights": distributed.full_tensors({n: p.detach() for n, p in state.parameters.items()}),
        "ema": distributed.full_tensors(state.ema.weights),
        "optimizer": distributed.full_optimizer_state(state.model, state.optimizer),
    }
    if distributed.rank() == 0:
        with run.save_checkpoint(state.step) as folder:
            checkpoint.save_state(folder, tensors, {"step": state.step, "feed": state.feed})


def restore(run: RunDir, state: State) -> None:
    """Continue from the run's newest checkpoint, if it has one."""
    newest = run.latest_checkpoint()
    if newest is None:
        return
    tensors, meta = checkpoint.load_state(newest.path)
    state.step = state.ema.num_updates = meta["step"]
    state.feed = meta.get("feed", {})  # absent from checkpoints that are older than datasets
    distributed.load_full_tensors(state.ema.weights, tensors["ema"])
    distributed.load_full_tensors(state.parameters, tensors["weights"])
    distributed.load_full_optimizer_state(state.model, state.optimizer, tensors["optimizer"])
