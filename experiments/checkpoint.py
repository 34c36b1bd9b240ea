"""The model in a run's training checkpoint, before the run has ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gvcot import checkpoint, distributed
from gvcot.config import load_dump, to_dict
from gvcot.errors import CheckpointError, DataError
from gvcot.model.pretrained import Pretrained, find_model, load_pretrained
from gvcot.run_dir import RunDir
from rl.config import RLConfig
from sft.config import SFTConfig
from sft.train import starting_point


def model_at(run: Path, step: int | None = None) -> tuple[Pretrained, dict[str, Any]]:
    """The averaged model of a stage or an RL run at a checkpoint, as the run would have exported it then.

    Args:
        run: its folder; the run may be going on. The model that it started from must still be where it was.
        step: of a checkpoint that is kept; None: the newest.

    Returns:
        The model, with adapters merged, and a record of how it was made.

    Raises:
        CheckpointError: no such checkpoint, or one of another model than the start.
        DataError: not the folder of a stage or an RL run.
    """
    config = read_config(run)
    found = RunDir(path=run).checkpoint(step)
    if found is None:
        raise CheckpointError(f"{run} has no checkpoint yet: the first is written after save_every steps")
    tensors, _ = checkpoint.load_state(found.path)
    if isinstance(config, SFTConfig):
        start, trained = starting_point(config, whole=True), tensors["ema"]
    else:
        start = load_pretrained(find_model(config.model), images=config.images)
        trained = tensors["average" if config.optim.ema_decay else "weights"]
    if config.lora is not None:
        from gvcot.model.lora import add_lora

        add_lora(start.model, config.lora)
    own = dict(start.model.named_parameters())
    unknown = sorted(trained.keys() - own.keys())
    if unknown:
        raise CheckpointError(f"{found.path} has weights that the run's model lacks: {unknown[:5]}")
    distributed.load_full_tensors({name: own[name] for name in trained}, trained)
    if config.lora is not None:
        from gvcot.model.lora import merged
        from gvcot.model.unified import UnifiedModel

        plain = UnifiedModel(start.model.config)
        plain.load_state_dict(merged(start.model, start.model.state_dict()))
        start.model = plain
    return start, {"config": to_dict(config), "step": found.step}


def read_config(run: Path) -> SFTConfig | RLConfig:
    """The configuration of a stage or an RL run.

    Raises:
        DataError: the folder is no run, or a codec's.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise DataError(f"{run} is not a run: expected a folder with a config.yaml, such as runs/tiny-stage2")
    keys = yaml.safe_load(path.read_text()) or {}
    if "rewards" in keys:
        return load_dump(RLConfig, path)
    if "mix" in keys:
        return load_dump(SFTConfig, path)
    raise DataError(f"{run} trains a codec, no model; a stage takes it as codec={run / 'final'}")
