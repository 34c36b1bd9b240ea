"""The prompts of the method. Every word of them is in the vocabulary of the small tokenizer.

Source: the stage-1 and stage-2 prompts are read off the method figure of GVCoT (arXiv 2603.01893); the
description prompt is ours (region description is a task of the small model's base stage).
"""

from __future__ import annotations

from collections.abc import Sequence

SYSTEM = "You should first identify the editing region and then generate edited image."
"""System prompt of the two-image chain (stage 2 of the paper, and RL)."""


def mask_prompt(instruction: str) -> str:
    """What asks for the painted region alone (stage 1 of the paper)."""
    return f'Given the instruction: "{instruction}", draw a mask to identify the editing region'


def describe_prompt() -> str:
    """What asks for the painted region in words."""
    return "Describe the marked region."


def locate_prompt(instruction: str) -> str:
    """What asks for the region in words: where it is, and what."""
    return f'Given the instruction: "{instruction}", identify the editing region'


def point_prompt(expression: str) -> str:
    """What asks where the thing is that a referring expression means."""
    return f"Identify {expression}"


def inventory_prompt() -> str:
    """What asks for everything in the image, in words."""
    return "Describe each thing in the image."


def point_words(point: tuple[float, float], size: tuple[int, int]) -> str:
    """A point (x, y) in pixels as coordinate words, each axis cut into 32 bins; `size`: (width, height)."""
    return f"<x{int(point[0] * 32 / size[0])}> <y{int(point[1] * 32 / size[1])}>"


def place_words(boxes: Sequence[tuple[int, int, int, int]], caption: str, size: tuple[int, int]) -> str:
    """A region in words: the middle of each of its parts, then what it is.

    Args:
        boxes: (x0, y0, x1, y1) in pixels of each part, x1 and y1 exclusive.
        caption: the region's caption.
        size: (width, height) of the image in pixels.
    """
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
    return " ".join([*(point_words(middle, size) for middle in middles), caption])
