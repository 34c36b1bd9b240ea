"""BAGEL's Mixture-of-Transformers model at any size, written from its description.

`config` and `tokenizer` do not import torch, so this package's root does not either: import what you
need from the submodules (`gvcot.model.unified.UnifiedModel`, `gvcot.model.sequence.pack`, ...).
"""
