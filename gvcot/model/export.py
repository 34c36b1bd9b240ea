"""A model as a folder of its own, in BAGEL's format: what `gvcot export` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gvcot.errors import CheckpointError
from gvcot.model.bagel_json import FLUX_WIDTH
from gvcot.model.bpe import BPETokenizer
from gvcot.model.flux_ae import FluxAE
from gvcot.model.pretrained import Pretrained, load_pretrained, read_history, save_pretrained

README = "README.md"

DTYPES = {"stored": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""By what the command line calls them."""


def export(folder: Path, out: Path, dtype: torch.dtype | None = None) -> None:
    """Write a checkpoint folder anew, as `write` does.

    Args:
        folder: a checkpoint folder.
        out: folder to write; another one.
        dtype: of the weights on disk; None: as they are stored now, bit for bit.

    Raises:
        CheckpointError: `folder` cannot be read, or is `out`.
    """
    if folder.resolve() == out.resolve():
        raise CheckpointError(f"{out} is the model itself; export it to another folder")
    write(load_pretrained(folder, dtype=dtype), read_history(folder), out)


def write(policy: Pretrained, stages: list[dict[str, Any]], out: Path) -> None:
    """Write a model as it is into a folder, with the records of all stages that led to it, and a README that
    says what BAGEL's own code can read of it."""
    save_pretrained(out, policy, {"stages": stages}, dtype=None)
    (out / README).write_text(readme(policy))


def readme(policy: Pretrained) -> str:
    """What lies in an exported folder, and what of it is not as in BAGEL-7B-MoT."""
    config = policy.model.config
    sizes = f"hidden {config.llm.hidden}, {config.llm.layers} layers, vocabulary {config.llm.vocab}"
    differences = _differences(policy)
    listed = "\n".join(f"- {line}" for line in differences) or "- Nothing: all files are of BAGEL's kinds."
    return f"""# A model in the format of BAGEL's checkpoints

Written by `gvcot export`. `config.json`, `llm_config.json` and `vit_config.json` have BAGEL's fields,
`ema.safetensors` has BAGEL's tensor names ({sizes}). What BAGEL has no field for stands in `config.json`
under "gvcot"; `record.json` says how the weights were made. Load it with
`gvcot.model.pretrained.load_pretrained`, or name the folder wherever a recipe asks for a model.

## What is not as in BAGEL's own folder

{listed}
"""


def _differences(policy: Pretrained) -> list[str]:
    config = policy.model.config
    found = []
    if not isinstance(policy.codec, FluxAE):
        found.append(
            "`ae.safetensors` is this project's small autoencoder, with tensor names of its own, not FLUX's. "
            "BAGEL's code cannot load it."
        )
    elif policy.codec.width != FLUX_WIDTH:
        found.append(
            f"`ae.safetensors` has the names of FLUX's autoencoder, but {policy.codec.width} base channels "
            f"instead of {FLUX_WIDTH}."
        )
    if not isinstance(policy.tokenizer, BPETokenizer):
        found.append("The tokenizer is a list of words, `words.json`; there are no files of Qwen2's.")
    if config.vit is None:
        found.append("There is no ViT, hence no `vit_config.json`.")
    return found
