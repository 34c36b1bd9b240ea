"""A small vision-language model that learned to judge edits of Scenes, for vLLM to serve."""
