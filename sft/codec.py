"""Training of the small codec: reconstruct sources, targets and painted reasoning images of Scenes.

Legend: B images, H W pixels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gvcot import checkpoint, overlay, seeds
from gvcot.config import to_dict
from gvcot.data import scenes
from gvcot.data.images import to_tensor, to_uint8
from gvcot.model.checkpoint import save_codec
from gvcot.model.codec import TinyAE
from gvcot.model.pretrained import RECORD_FILE
from gvcot.run_dir import RunDir
from gvcot.tracking import Tracker
from sft.config import CodecTrainConfig
from sft.schedule import learning_rate


def codec_loss(
    codec: TinyAE, images_B3HW: Tensor, noise_BChw: Tensor, kl_weight: float
) -> tuple[Tensor, Tensor]:
    """(loss, reconstruction MSE): mean squared error over all values + kl_weight * mean KL to N(0, 1).

    Source: Kingma and Welling, arXiv 1312.6114, eq. 10, with both terms as means over their values.
    """
    mean, logvar = codec.moments(images_B3HW)
    latent = mean + noise_BChw * (0.5 * logvar).exp()
    mse = F.mse_loss(codec.decoder(latent), images_B3HW)
    kl = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return mse + kl_weight * kl, mse.detach()


def scene_images(seed: int, split: scenes.Split, indices: range, size: int) -> np.ndarray:
    """uint8 (3n, H, W, 3): source, target and true reasoning image of n scenes, interleaved."""
    samples = [scenes.generate(seed, i, split=split, size=size) for i in indices]
    source = to_tensor([s.source_HW3 for s in samples])
    mask = torch.from_numpy(np.stack([s.mask_HW for s in samples]))
    painted = to_uint8(overlay.paint(source, mask, [s.paint for s in samples]))
    triples = [(s.source_HW3, s.target_HW3, p) for s, p in zip(samples, painted, strict=True)]
    return np.stack([image for triple in triples for image in triple if image is not None])


def batches(images_NHW3: np.ndarray, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Endless float batches; batch k is a function of (seed, k) alone, so a resumed run continues it."""
    step = start
    while True:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(images_NHW3), size=batch_size)
        batch = to_tensor(list(images_NHW3[rows]))
        flip = torch.from_numpy(rng.random(batch_size) < 0.5)
        batch[flip] = batch[flip].flip(-1)
        yield batch
        step += 1


@torch.no_grad()
def fidelity(codec: TinyAE, images_NHW3: np.ndarray) -> dict[str, float]:
    """Round-trip PSNR (dB, of uint8-range images) over interleaved (source, target, reasoning) triples."""
    images = to_tensor(list(images_NHW3))
    decoded = torch.cat([codec.decode(codec.encode(chunk)) for chunk in images.split(64)])
    psnr_N = -10.0 * ((decoded - images) / 2.0).square().flatten(1).mean(1).log10()
    kinds = ("source", "target", "x_cot")
    return {"psnr": psnr_N.mean().item()} | {
        f"psnr_{k}": psnr_N[i::3].mean().item() for i, k in enumerate(kinds)
    }


@torch.no_grad()
def mask_readback(codec: TinyAE, seed: int, split: scenes.Split, indices: range, size: int) -> float:
    """Mean IoU of masks read from round-tripped *true* reasoning images: the ceiling of `mask_iou`."""
    samples = [scenes.generate(seed, i, split=split, size=size) for i in indices]
    source = to_tensor([s.source_HW3 for s in samples])
    mask_BHW = torch.from_numpy(np.stack([s.mask_HW for s in samples]))
    painted = overlay.paint(source, mask_BHW, [s.paint for s in samples])
    read_BHW = overlay.read(codec.decode(codec.encode(painted)), codec.decode(codec.encode(source)))
    inter = (read_BHW & mask_BHW).flatten(1).sum(1)
    union = (read_BHW | mask_BHW).flatten(1).sum(1)
    return (inter / union.clamp_min(1)).mean().item()


def train_codec(config: CodecTrainConfig, run: RunDir, tracker: Tracker) -> dict[str, float]:
    """Train, save `run/final/ae.safetensors`, and return validation metrics."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.manual_seed(seeds.derive("codec", config.seed))
    codec = TinyAE(z=config.z, width=config.width).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.AdamW(
        codec.parameters(),
        lr=config.optim.lr,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
    )
    start = restore(run, codec, optimizer)
    images = scene_images(config.seed, "train", range(config.num_samples), config.image_size)
    began = time.monotonic()
    stream = batches(images, config.batch_size, config.seed, start)
    for step, batch in zip(range(start, config.steps), stream, strict=False):  # the stream is endless
        noise = torch.randn(
            (config.batch_size, config.z, config.image_size // 8, config.image_size // 8),
            generator=seeds.generator("codec", config.seed, step),
        )
        loss, mse = codec_loss(codec, batch, noise, config.kl_weight)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optim, step, config.steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), config.optim.grad_clip)
        optimizer.step()
        if (step + 1) % config.log_every == 0:
            psnr = -10.0 * (mse / 4.0).log10().item()
            tracker.log(
                step + 1,
                {
                    "codec/loss": loss.item(),
                    "codec/train_psnr": psnr,
                    "time/seconds": time.monotonic() - began,
                },
            )
        if (step + 1) % config.save_every == 0:
            save(run, step + 1, codec, optimizer)
    set_statistics(codec, images)
    metrics = fidelity(codec, scene_images(0, "val", range(256), config.image_size))
    metrics["mask_readback_iou"] = mask_readback(codec, 0, "val", range(256), config.image_size)
    folder = run.path / "final"
    folder.mkdir(exist_ok=True)
    save_codec(codec, folder)
    record = {"config": to_dict(config), "metrics": metrics}
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")
    tracker.log(config.steps, {f"codec/{k}": v for k, v in metrics.items()})
    return metrics


@torch.no_grad()
def set_statistics(codec: TinyAE, images_NHW3: np.ndarray) -> None:
    """Give latents unit variance per channel, measured on a slice of the training images."""
    chunk = to_tensor(list(images_NHW3[:1536]))
    codec.set_statistics(torch.cat([codec.moments(part)[0] for part in chunk.split(64)]))


def save(
    run: RunDir,
    step: int,
    codec: TinyAE,
    optimizer: torch.optim.AdamW,
) -> None:
    """Write a checkpoint to resume from."""
    moments = {n: optimizer.state[p] for n, p in codec.named_parameters()}
    tensors = {
        "weights": codec.state_dict(),
        "exp_avg": {n: m["exp_avg"] for n, m in moments.items()},
        "exp_avg_sq": {n: m["exp_avg_sq"] for n, m in moments.items()},
    }
    with run.save_checkpoint(step) as folder:
        checkpoint.save_state(folder, tensors, {"step": step})


def restore(
    run: RunDir,
    codec: TinyAE,
    optimizer: torch.optim.AdamW,
) -> int:
    """Continue from the run's newest checkpoint; the step to go on with."""
    newest = run.latest_checkpoint()
    if newest is None:
        return 0
    tensors, meta = checkpoint.load_state(newest.path)
    codec.load_state_dict(tensors["weights"])
    for name, parameter in codec.named_parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(meta["step"])),
            "exp_avg": tensors["exp_avg"][name],
            "exp_avg_sq": tensors["exp_avg_sq"][name],
        }
    return meta["step"]
