"""Editing one image with a trained model: what `gvcot edit` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import typer
from PIL import Image

from gvcot import overlay, seeds
from gvcot.chain import Chain
from gvcot.data.images import read_image, to_tensor, to_uint8
from gvcot.model.pretrained import WARM_START, find_model, load_pretrained
from gvcot.sampler import condition_of, draw, ode_denoiser
from gvcot.types import ChainConfig, EditSample, GuidanceConfig


def run_edit(
    image: Path,
    instruction: str,
    checkpoint: Path | None,
    out: Path,
    *,
    num_steps: int = 50,
    shift: float = 3.0,
    seed: int = 0,
    guidance: GuidanceConfig | None = None,
) -> Path:
    """Draw the reasoning image and the edit, and save both with the mask read from the first.

    Args:
        image: the image file.
        instruction: what to do.
        checkpoint: model or run folder; None for the shipped model.
        out: folder for x_cot.png, mask.png and x_edit.png.
        num_steps: ODE steps per image.
        shift: of the sampling grid.
        seed: of the noise.
        guidance: None for none.

    Raises:
        DataError: unreadable image or unknown words.
        ConfigError: an image larger than the model has positions for.
        CheckpointError: no usable model.
    """
    policy = load_pretrained(find_model(checkpoint or WARM_START))
    config, codec = policy.model.config, policy.codec
    source_HW3 = read_image(image, multiple=config.token_px, fit=config.fit)
    chain = Chain(ChainConfig(), policy.tokenizer, has_vit=config.vit is not None)
    sample = unlabelled(source_HW3, instruction)
    drawn = draw(
        policy.model,
        codec,
        chain,
        condition_of([sample], config, codec, chain),
        denoise=ode_denoiser(num_steps, shift),
        noise=lambda name, shape: seeds.noise_BND([seeds.derive(seed, name)], shape[1:]),
        guidance=guidance,
    )
    with torch.no_grad():
        source_rt = codec.decode(codec.encode(to_tensor([source_HW3])))
    mask_HW = overlay.read(drawn.images["x_cot"], source_rt)[0]
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.images.items():
        Image.fromarray(to_uint8(picture)[0]).save(out / f"{name}.png")
    Image.fromarray(mask_HW.numpy().astype(np.uint8) * 255).save(out / "mask.png")
    typer.echo(f"{out}: x_cot.png (where), mask.png (the region read from it), x_edit.png (the edit)")
    return out


def unlabelled(source_HW3: np.ndarray, instruction: str) -> EditSample:
    """A sample of which only the question is known."""
    return EditSample(
        sample_id="edit",
        source_HW3=source_HW3,
        instruction=instruction,
        task="",
        referral="unknown",
        mask_HW=np.zeros(source_HW3.shape[:2], dtype=bool),
        regions=(),
    )
