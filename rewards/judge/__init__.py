"""Vision-language models as judges of edits, asked over the OpenAI API."""
