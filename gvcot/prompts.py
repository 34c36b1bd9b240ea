"""The prompts of the method. Every word of them is in the vocabulary of the small tokenizer.

Source: the stage-1 and stage-2 prompts are read off the method figure of GVCoT (arXiv 2603.01893); the
description prompt is ours (region description is a task of the small model's base stage).
"""

from __future__ import annotations

SYSTEM = "You should first identify the editing region and then generate edited image."
"""System prompt of the two-image chain (stage 2 of the paper, and RL)."""


def mask_prompt(instruction: str) -> str:
    """What asks for the painted region alone (stage 1 of the paper)."""
    return f'Given the instruction: "{instruction}", draw a mask to identify the editing region'


def describe_prompt() -> str:
    """What asks for the painted region in words."""
    return "Describe the marked region."


def locate_prompt(instruction: str) -> str:
    """What asks for the region's box in coordinate words."""
    return f'Given the instruction: "{instruction}", identify the editing region'


def box_words(box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    """A box (x0, y0, x1, y1) in pixels as coordinate words, each axis cut into 32 bins.

    Args:
        box: x1 and y1 exclusive.
        size: (width, height) of the image in pixels.
    """
    x0, y0, x1, y1 = box
    bins = [x0 * 32 // size[0], y0 * 32 // size[1], (x1 - 1) * 32 // size[0], (y1 - 1) * 32 // size[1]]
    return " ".join(f"<{axis}{value}>" for axis, value in zip("xyxy", bins, strict=True))
