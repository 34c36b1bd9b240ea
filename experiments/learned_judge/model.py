"""The judge: a Qwen3-VL of a million parameters with its processor, as one folder that vLLM serves.

A piece of an image, a cell of Scenes, is one token, so the two pictures are 32 tokens and comparing them is
attention from a place to the same place. That is what a small network from scratch is slowest to find, so it
begins with it (`_look_at_the_same_place`); all the rest is Hugging Face's implementation as it is.

Legend: B images, C pieces of an image, D values of a piece, H W pixels, N edits, S scenes, T tokens, W hidden
size, X the ten digits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gvcot.torchvision_cpu import declare_missing_operators

declare_missing_operators()

from transformers import (  # noqa: E402
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from experiments.learned_judge.config import NetworkConfig  # noqa: E402
from experiments.learned_judge.data import Pairs  # noqa: E402
from experiments.learned_judge.packing import Asked, Packed, Packer  # noqa: E402
from experiments.learned_judge.tokenizer import (  # noqa: E402
    IMAGE,
    IMAGE_END,
    IMAGE_START,
    VIDEO,
    token_id,
)
from gvcot.errors import CheckpointError  # noqa: E402

Network = Any
"""A Qwen3VLForConditionalGeneration, of whose parts transformers' annotations know too little."""

DIGITS = "0123456789"

RECORD_FILE = "learned_judge.json"
"""How the judge was made and how it agrees with the truth, in its folder."""

BATCH = 64
"""Edits that are judged at a time."""

LOOKING_LAYERS = 2
LOOKING_HEADS = 2
"""Heads of the first layers that begin by looking at the same place of the picture before."""

PLACE_SCALE = 0.2
"""Standard deviation of the places that a new ViT adds to its patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedJudge:
    """A network that answers with a digit, and what turns messages into its inputs."""

    network: Network
    processor: Qwen3VLProcessor

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.processor.tokenizer  # pyright: ignore

    @property
    def packer(self) -> Packer:
        """What packs its questions."""
        vision = self.network.config.vision_config
        return Packer(self.tokenizer, round(vision.num_position_embeddings**0.5))

    @property
    def digit_ids(self) -> Tensor:
        """int64 (X,)."""
        return torch.tensor([token_id(self.tokenizer, digit) for digit in DIGITS])

    def save(self, folder: Path, record: dict[str, Any]) -> None:
        """Write weights, tokenizer, processor and chat template in Hugging Face's format, and the record."""
        self.network.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n")


def new_judge(config: NetworkConfig, tokenizer: PreTrainedTokenizerFast) -> LearnedJudge:
    """A judge with random weights, from torch's generator."""
    return LearnedJudge(network=new_network(config, tokenizer), processor=new_processor(config, tokenizer))


def find_judge(folder: Path) -> Path:
    """A judge's own folder: the one given, or the `final` one of a finished run.

    Raises:
        CheckpointError: neither holds a learned judge.
    """
    for candidate in (folder / "final", folder):
        if (candidate / RECORD_FILE).is_file():
            return candidate
    raise CheckpointError(
        f"{str(folder)!r} holds no learned judge. Expected the folder of a finished `gvcot judge train` run, "
        f"or one with {RECORD_FILE}"
    )


def load_judge(folder: Path) -> tuple[LearnedJudge, dict[str, Any]]:
    """A saved judge and its record. Raises CheckpointError as `find_judge` does."""
    folder = find_judge(folder)
    network = Qwen3VLForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = Qwen3VLProcessor.from_pretrained(folder, local_files_only=True)
    record = json.loads((folder / RECORD_FILE).read_text())
    return LearnedJudge(network=network, processor=processor), record


@torch.no_grad()
def judged(
    judge: LearnedJudge,
    instructions: Sequence[str],
    before_NHW3: np.ndarray,
    after_NHW3: np.ndarray,
) -> np.ndarray:
    """SC and PQ of edits, 0 to 10, as `rewards.judge.readout` reads them of a server; float32 (N, 2)."""
    packer, digit_ids = judge.packer, judge.digit_ids
    scores = []
    for start in range(0, len(instructions), BATCH):
        part = slice(start, start + BATCH)
        packed = packer([Asked(instruction=words, num_edits=1) for words in instructions[part]])
        states = hidden(judge.network, packed, before_NHW3[part], after_NHW3[part])
        p_N2X = judge.network.lm_head(states[packed.answer_N2])[..., digit_ids].softmax(dim=-1)
        scores.append(p_N2X @ torch.arange(10.0) * 10 / 9)
    return torch.cat(scores).numpy()


def scores_of(judge: LearnedJudge, pairs: Pairs) -> np.ndarray:
    """What it says of all of them; arguments and result otherwise as `judged`."""
    instructions = [pairs.instructions[scene] for scene in pairs.scene_N]
    return judged(judge, instructions, pairs.before_SHW3[pairs.scene_N], pairs.after_NHW3)


def new_network(config: NetworkConfig, tokenizer: PreTrainedTokenizerFast) -> Network:
    """A network with random weights, from torch's generator."""
    head = config.width // config.heads
    per_axis = head // 6
    sections = [head // 2 - 2 * per_axis, per_axis, per_axis]
    text = {
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "head_dim": head,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": sections,
            "mrope_interleaved": True,
        },
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    vision = {
        "depth": config.vit_layers,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "num_heads": config.heads,
        "out_hidden_size": config.width,
        "patch_size": config.patch,
        "spatial_merge_size": 1,
        "temporal_patch_size": 1,
        "num_position_embeddings": config.side**2,
        "deepstack_visual_indexes": [],
    }
    names = {"image_token_id": IMAGE, "video_token_id": VIDEO}
    names |= {"vision_start_token_id": IMAGE_START, "vision_end_token_id": IMAGE_END}
    ids: dict[str, Any] = {name: token_id(tokenizer, token) for name, token in names.items()}
    network = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )
    _look_at_the_same_place(network, config.side)
    return network


def new_processor(config: NetworkConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    """What turns images and texts into the network's inputs; all images get one size."""
    pixels = config.image_side**2
    settings: dict[str, Any] = {
        "patch_size": config.patch,
        "temporal_patch_size": 1,
        "merge_size": 1,
        "size": {"shortest_edge": pixels, "longest_edge": pixels},
        "resample": 0,  # the nearest pixel, which undoes the client's enlarging
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**settings),
        video_processor=Qwen3VLVideoProcessor(**settings),  # vLLM asks for one
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
    )


def patches(images_BHW3: np.ndarray, patch: int) -> Tensor:
    """uint8 images -> float32 (B * C, D) in [-1, 1], as the processor makes them of images of their size."""
    x = torch.from_numpy(images_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
    size, _, height, width = x.shape
    x = x.reshape(size, 3, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, 3 * patch * patch)


def hidden(network: Network, packed: Packed, before_SHW3: np.ndarray, after_NHW3: np.ndarray) -> Tensor:
    """Last hidden states of packed rows, (B * T, W).

    Args:
        network: computes them.
        packed: the rows.
        before_SHW3: uint8; of each row.
        after_NHW3: uint8; of each edit, row by row.
    """
    vision = network.config.vision_config
    patch, side = vision.patch_size, round(packed.before_BC.shape[1] ** 0.5)
    images_XHW3 = np.concatenate([before_SHW3, after_NHW3])
    grid_X3 = torch.tensor([[1, side, side]]).expand(len(images_XHW3), -1)
    pieces = network.model.visual(patches(images_XHW3, patch), grid_thw=grid_X3).pooler_output
    embedded_BTW = network.get_input_embeddings()(packed.token_BT)
    places = torch.cat([packed.before_BC, packed.after_NC]).flatten()
    flat = embedded_BTW.flatten(0, 1).index_copy(0, places, pieces)
    states_BTW = network.model.language_model(
        inputs_embeds=flat.view_as(embedded_BTW),
        position_ids=packed.position_3BT,
        attention_mask=packed.visible_B1TT,
        use_cache=False,
    ).last_hidden_state
    return states_BTW.flatten(0, 1)


@torch.no_grad()
def _look_at_the_same_place(network: Network, side: int) -> None:
    """Let some heads begin with attending to what looks alike at the same place of the picture before.

    Rotary positions turn queries and keys by R(position). With q = R(-d) K x and k = K y their product is
    x^T K^T K y for positions that are d apart: greatest where x and y are alike. Between the same places of
    the two pictures, d is `side` + 2 on all three axes.
    """
    decoder = network.model.language_model
    angle = decoder.rotary_emb.inv_freq * (side + 2)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    network.model.visual.pos_embed.weight.normal_(0, PLACE_SCALE)
    for layer in decoder.layers[:LOOKING_LAYERS]:
        attention = layer.self_attn
        size = attention.head_dim
        for head in range(LOOKING_HEADS):
            rows = slice(head * size, (head + 1) * size)
            key = nn.init.orthogonal_(torch.empty(size, attention.k_proj.in_features))
            low, high = key.chunk(2)
            attention.k_proj.weight[rows] = key
            attention.q_proj.weight[rows] = torch.cat([low * cos + high * sin, high * cos - low * sin])
