"""The judge's tokenizer: byte-level BPE on instructions, and each fixed text of the prompts one token.

A question has some 35 tokens beside its images instead of 500. Prompts are as the client writes them; only
the tokenizer, which is a part of the model, knows of this.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rewards.judge.prompts import DIGIT, PQ, SC, SYSTEM

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIALS = (PAD, START, END, IMAGE_START, IMAGE_END, IMAGE, VIDEO)

INSTRUCTION_START, INSTRUCTION_END = "<instruction>\n", "\n</instruction>\n\n"
"""The marks around an instruction, as the tokenizer sees them."""

FIXED = (
    "system\n",
    "user\n",
    "assistant\n",
    SYSTEM,
    "Image 1 is the picture before the edit. Image 2 is the picture after the edit.",
    " The instruction stands between these marks:\n",
    INSTRUCTION_START,
    INSTRUCTION_END,
    f"{SC}\n\n",
    f"\n\n{PQ}\n\n",
    DIGIT,
)
"""Texts that are one token each."""

CHAT_TEMPLATE = f"""\
{{% for message in messages %}}{START}{{{{ message.role }}}}
{{% if message.content is string %}}{{{{ message.content }}}}{{% else %}}\
{{% for part in message.content %}}\
{{% if part.type in ("image", "image_url") %}}{IMAGE_START}{IMAGE}{IMAGE_END}\
{{% elif part.type == "text" %}}{{{{ part.text }}}}{{% endif %}}\
{{% endfor %}}{{% endif %}}{END}
{{% endfor %}}{{% if add_generation_prompt %}}{START}assistant
{{% endif %}}"""


def make_tokenizer(texts: Iterable[str], vocab: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocab` tokens, learned from instructions and expressions."""
    learned = Tokenizer(models.BPE())
    # The marks hold a digest of the instruction, which says nothing of the edit and would be 12 tokens.
    learned.normalizer = normalizers.Replace(Regex("instruction-[0-9a-f]{12}"), "instruction")
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(FIXED),
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer)
    learned.add_tokens([AddedToken(text, normalized=True) for text in FIXED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[IMAGE_START, IMAGE_END, IMAGE, VIDEO],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    """The number of a token."""
    found = tokenizer.convert_tokens_to_ids(text)
    assert isinstance(found, int)
    return found
