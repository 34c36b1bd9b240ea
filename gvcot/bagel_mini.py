"""`bagel-mini`: a folder exactly like BAGEL's, at the smallest size, with random weights.

    python -m gvcot.bagel_mini runs/bagel-mini

BAGEL's layout with its SigLIP encoder, its codec (32 base channels, the fewest that its norms allow) and a
byte-level tokenizer by Qwen2's rules, trained on the words of Scenes. It draws noise; it is there so that the
code that trains BAGEL can run anywhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel

from gvcot import prompts, seeds
from gvcot.data import scenes
from gvcot.model.bpe import BPETokenizer
from gvcot.model.checkpoint import build_codec
from gvcot.model.config import CodecConfig, LLMConfig, ResizeConfig, UnifiedConfig, ViTConfig
from gvcot.model.pretrained import Pretrained, save_pretrained
from gvcot.model.unified import UnifiedModel

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5's special tokens; their ids follow those of the byte pairs, in this order."""

WORD_PIECES = 1_000
"""Bytes and byte pairs of the tokenizer."""

SPARE_ROWS = 50
"""Rows of the embedding that no token uses; BAGEL's has some too."""


def make(folder: Path, seed: int = 0) -> None:
    """Write the folder; the same seed gives the same bytes.

    Args:
        folder: created where missing.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(train_bpe(scene_texts(), WORD_PIECES), folder)
    tokenizer = BPETokenizer(folder)
    config = UnifiedConfig(
        llm=LLMConfig(
            hidden=128, layers=2, heads=4, kv_heads=2, mlp=256, vocab=tokenizer.vocab_size + SPARE_ROWS
        ),
        vit=ViTConfig(
            hidden=64,
            layers=2,
            heads=4,
            mlp=128,
            patch=14,
            max_side=10,
            resize=ResizeConfig(longest=140, shortest=56),
        ),
        codec=CodecConfig(kind="flux", width=32),
        max_latent=16,
        token_ids=tokenizer.token_ids,
        resize=ResizeConfig(longest=256, shortest=64),
    )
    generator = seeds.generator("bagel-mini", seed)
    model = UnifiedModel(config)
    model.init_weights(generator)
    codec = build_codec(config.codec)
    with torch.no_grad():
        model.llm2vae.weight.normal_(0, 0.1, generator=generator)  # a new model predicts no velocity at all
        for name, parameter in codec.named_parameters():
            if parameter.ndim == 4:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.fill_(float("norm" in name and name.endswith("weight")))
    policy = Pretrained(model=model, codec=codec, tokenizer=tokenizer)
    save_pretrained(folder, policy, {"config": {"name": "bagel-mini", "seed": seed}})


def scene_texts() -> list[str]:
    """What the tokenizer is trained on: prompts, and the texts of some scenes."""
    texts = [prompts.SYSTEM, prompts.describe_prompt(), prompts.inventory_prompt()]
    for sample in scenes.samples("train", range(100)):
        texts += [sample.instruction, sample.region_caption, sample.scene_caption]
        texts.append(prompts.mask_prompt(sample.instruction))
    return texts


def train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pairs by Qwen2's rules for normalising and splitting, then its special tokens.

    Args:
        texts: to count pairs in.
        size: ids without the special tokens; fewer where the texts have no more pairs.
    """
    from transformers import Qwen2Tokenizer

    rules = Qwen2Tokenizer().backend_tokenizer
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = rules.normalizer
    tokenizer.pre_tokenizer = rules.pre_tokenizer
    tokenizer.decoder = rules.decoder
    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that Qwen2's tokenizers come with."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIALS
    }
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIALS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m gvcot.bagel_mini", description="Write the bagel-mini folder."
    )
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.seed)
    print(arguments.folder)


if __name__ == "__main__":
    main()
