"""Training state on disk: exact, complete or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gvcot.checkpoint import flatten, load_state, save_state, unflatten
from gvcot.distributed import full_optimizer_state, load_full_optimizer_state
from gvcot.errors import CheckpointError

keys = st.text(min_size=0, max_size=6)
trees = st.recursive(
    st.builds(lambda n: torch.tensor(n), st.integers(-9, 9)),
    lambda child: st.dictionaries(keys, child, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, trees, max_size=4))
def test_any_nesting_and_any_key_survives_flattening(tree: dict):
    assert unflatten(*flatten(tree)) == tree


def trained_model() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        train_step(model, optimizer, step)
    return model, optimizer


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_training_resumed_from_disk_continues_bit_for_bit(tmp_path: Path):
    model, optimizer = trained_model()
    state = {"model": model.state_dict(), "optimizer": full_optimizer_state(model, optimizer)}
    save_state(tmp_path / "step_3", state, {"step": 3, "loss": 0.1})
    train_step(model, optimizer, 3)

    torch.manual_seed(1)
    resumed = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    resumed[0].bias.requires_grad_(False)
    fresh = torch.optim.AdamW([p for p in resumed.parameters() if p.requires_grad], lr=0.1)
    tensors, meta = load_state(tmp_path / "step_3")
    resumed.load_state_dict(tensors["model"])
    load_full_optimizer_state(resumed, fresh, tensors["optimizer"])
    train_step(resumed, fresh, 3)

    assert meta == {"step": 3, "loss": 0.1}
    assert "0.bias" not in tensors["optimizer"]  # frozen
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_dtypes_views_and_shared_tensors_survive(tmp_path: Path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "view": base[:, 1:3],
        "transposed": base.T,
        "again": base,
        "bf16": base.bfloat16(),
        "rng": torch.get_rng_state(),
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    save_state(tmp_path, state, {})
    loaded, _ = load_state(tmp_path)
    for name, value in state.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(
            loaded[name].contiguous().view(torch.uint8) if value.dim() else loaded[name],
            value.contiguous().view(torch.uint8) if value.dim() else value,
        ), name


def test_optimizer_without_a_step_keeps_its_empty_state(tmp_path: Path):
    save_state(tmp_path, {"optimizer": {}, "w": torch.ones(2)}, {})
    assert load_state(tmp_path)[0]["optimizer"] == {}


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_tensors_are_refused_by_name(tmp_path: Path, keep: int):
    save_state(tmp_path, {"w": torch.randn(64)}, {})
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        CheckpointError, match=r"state\.safetensors .* truncated\. Resume from an earlier step"
    ):
        load_state(tmp_path)


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    save_state(tmp_path, {"w": torch.randn(64)}, {})
    path = tmp_path / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        load_state(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_a_damaged_record_is_refused_by_name(tmp_path: Path, text: str):
    save_state(tmp_path, {"w": torch.ones(2)}, {})
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_state(tmp_path)


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, name: str):
    save_state(tmp_path, {"w": torch.ones(2)}, {})
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_state(tmp_path)


def test_what_is_neither_tensor_nor_json_is_refused_before_writing(tmp_path: Path):
    with pytest.raises(TypeError, match="a/b is a int"):
        save_state(tmp_path, {"a": {"b": 3}}, {})
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(tmp_path, {}, {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []
