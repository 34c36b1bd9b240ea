"""The prompts are the paper's, and the small model can read them."""

from __future__ import annotations

from gvcot import prompts


def test_prompts_are_the_papers_word_for_word():
    assert prompts.SYSTEM == "You should first identify the editing region and then generate edited image."
    assert prompts.mask_prompt("remove the red circle") == (
        'Given the instruction: "remove the red circle", draw a mask to identify the editing region'
    )


def test_the_instruction_is_quoted_unchanged():
    assert '"Make it {blue}"' in prompts.mask_prompt("Make it {blue}")
