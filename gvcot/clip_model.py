"""CLIP: images and texts in one space of unit vectors. The one place where open_clip is imported.

    clip = load_clip()                                              # "scenes", the small one that is shipped
    clip = load_clip("ViT-B-32", "weights/open_clip_model.safetensors")
    similarity_B = (clip.images(image_B3HW) * clip.texts(texts)).sum(dim=1)

Nothing is downloaded. The shipped folder is one that open_clip itself can read (`local-dir:`);
`experiments/clip_scenes.py` makes it.

Dimension legend: B images or texts, T text tokens, D values of an embedding, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F

from gvcot.errors import CheckpointError, ConfigError, DataError, closest
from gvcot.model.tokenizer import WordTokenizer
from gvcot.torchvision_cpu import declare_missing_operators

SCENES = "scenes"
"""Name of the small model that knows the images and words of Scenes."""

SCENES_FOLDER = Path(__file__).parent / "assets" / "clip_scenes"
"""Where it is shipped."""

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipModel:
    """A CLIP network with what stands before it. Gradients flow; rewards switch them off themselves."""

    network: Any
    """A module of open_clip."""

    tokenize: Callable[[Sequence[str]], Tensor]
    """Texts -> int64 token ids (B, T); longer texts are cut, as CLIP does."""

    size: tuple[int, int]
    """(height, width) in pixels of the network's images."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """The network's images are (x - mean) / std, with x in [0, 1]."""

    def images(self, image_B3HW: Tensor) -> Tensor:
        """Unit vectors (B, D), on the images' device. Images of another size are stretched to the network's,
        not cropped: every pixel counts.

        Args:
            image_B3HW: float images in [-1, 1].
        """
        self.network.to(image_B3HW.device)
        x_B3HW = image_B3HW.float()
        if x_B3HW.shape[2:] != self.size:
            x_B3HW = F.interpolate(x_B3HW, self.size, mode="bicubic", antialias=True).clamp(-1.0, 1.0)
        mean, std = (x_B3HW.new_tensor(value)[:, None, None] for value in (self.mean, self.std))
        return self.network.encode_image(((x_B3HW + 1) / 2 - mean) / std, normalize=True)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (B, D), on the network's device; equal texts are encoded once.

        Raises:
            DataError: a word that the tokenizer doesn't know.
        """
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        device = next(self.network.parameters()).device
        text_BD = self.network.encode_text(self.tokenize(list(row)).to(device), normalize=True)
        return text_BD[[row[text] for text in texts]]

    def unread(self, texts: Iterable[str]) -> dict[str, str]:
        """The texts among these that the tokenizer can't take, and why."""
        found: dict[str, str] = {}
        for text in dict.fromkeys(texts):
            try:
                self.tokenize([text])
            except DataError as error:
                found[text] = str(error)
        return found


def load_clip(name: str = SCENES, weights: str | Path | None = None) -> ClipModel:
    """A CLIP model from local files, ready to be asked.

    Args:
        name: "scenes", or a name of open_clip such as "ViT-B-32" (with OpenAI's own weights:
            "ViT-B-32-quickgelu").
        weights: safetensors file; may be left out for "scenes" alone.

    Raises:
        ConfigError: an unknown name, one that needs a download, or a weights file that is missing or of
            another format.
        CheckpointError: the weights are not those of the named network.
    """
    if weights is None:
        if name != SCENES:
            raise ConfigError(
                f"CLIP {name!r}: give its weights, a local safetensors file; only {SCENES!r} is shipped"
            )
        weights = SCENES_FOLDER / WEIGHTS_FILE
    path = Path(weights)
    if not path.is_file() or path.suffix != ".safetensors":
        raise ConfigError(
            f"CLIP {name!r}: {str(path)!r} is no file of safetensors; give one that is on this machine"
        )
    if name != SCENES:
        return _load_named(name, path)
    clip = scenes_clip(json.loads((SCENES_FOLDER / CONFIG_FILE).read_text()))
    try:
        _open_clip().load_checkpoint(clip.network, str(path))
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise _unfit(name, path, error) from error
    clip.network.eval()
    return clip


def scenes_clip(config: Mapping[str, Any]) -> ClipModel:
    """The small network with random weights, and the word tokenizer of Scenes.

    Args:
        config: as in the shipped `open_clip_config.json`.
    """
    tokenizer, length = WordTokenizer(), config["model_cfg"]["text_cfg"]["context_length"]

    def tokenize(texts: Sequence[str]) -> Tensor:
        ids_BT = torch.full((len(texts), length), tokenizer.pad_id)
        for row, text in enumerate(texts):
            words = tokenizer.encode(text)[: length - 2]
            ids = [tokenizer.token_ids.bos, *words, tokenizer.token_ids.eos]
            ids_BT[row, : len(ids)] = torch.tensor(ids)
        return ids_BT

    return _wrap(_open_clip().CLIP(**config["model_cfg"]), tokenize, config["preprocess_cfg"])


def _load_named(name: str, path: Path) -> ClipModel:
    open_clip = _open_clip()
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise ConfigError(f"unknown CLIP {name!r}: {closest(name, [SCENES, *open_clip.list_models()])}")
    if {"hf_model_name", "hf_tokenizer_name"} & set(config["text_cfg"]):
        raise ConfigError(
            f"CLIP {name!r}: its tokenizer is on a model hub, and nothing is downloaded; use a network with "
            "CLIP's own, such as ViT-B-32 or MobileCLIP-S1"
        )
    try:
        network = open_clip.create_model(name, pretrained=str(path))
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise _unfit(name, path, error) from error
    tokenizer, preprocess = open_clip.get_tokenizer(name), open_clip.get_model_preprocess_cfg(network)
    return _wrap(network.eval(), lambda texts: tokenizer(list(texts)), preprocess)


def _wrap(
    network: Any, tokenize: Callable[[Sequence[str]], Tensor], preprocess: Mapping[str, Any]
) -> ClipModel:
    size = preprocess["size"]
    return ClipModel(
        network=network,
        tokenize=tokenize,
        size=(size, size) if isinstance(size, int) else tuple(size),
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
    )


def _unfit(name: str, path: Path, error: Exception) -> CheckpointError:
    first = str(error).partition("\n")[0]  # what follows lists every tensor
    return CheckpointError(
        f"{path} does not hold the weights of CLIP {name!r} ({first}); give the file of this name"
    )


def _open_clip() -> Any:
    """The library, imported late: with torchvision and timm it takes seconds."""
    declare_missing_operators()
    import open_clip

    return open_clip
