"""The one door to FSDP2: sharding a model over workers, and gathering what checkpoints and exports need.

Every function below works on plain and on sharded models alike, at any number of workers. Functions marked
*collective* must be called by every worker, in the same order.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grad_norm_

from gvcot.errors import CheckpointError, ResourceError

OptimizerState = dict[str, dict[str, Tensor]]
"""Parameter name -> {"exp_avg": ..., "exp_avg_sq": ..., "step": ...}, all full-size CPU tensors."""


def init_process_group(device_type: str | None = None) -> DeviceMesh:
    """Join the workers named by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without these, be alone.

    Args:
        device_type: "cpu" (gloo) or "cuda" (NCCL, on the device LOCAL_RANK); by default cuda if there is one.

    Returns:
        A one-dimensional mesh over all workers, its dimension named "policy". *Collective.*
    """
    device_type = device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        if "WORLD_SIZE" in os.environ:
            dist.init_process_group(backend)
        else:
            alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1)
    return init_device_mesh(device_type, (dist.get_world_size(),), mesh_dim_names=("policy",))


@contextmanager
def team(size: int, member: Callable[..., None], *args: Any, device: str = "cpu") -> Iterator[None]:
    """Run the block as worker 0 of `size` processes; the others run `member(*args)`.

    They are started on this machine, unless a launcher (`torchrun`) has started them, on as many machines as
    it likes: then each of them calls `follow`.

    Args:
        size: workers in all; 1 starts none.
        member: a function of a module; it makes the same collective calls as the block.
        args: its arguments, which travel to other processes.
        device: "cpu", or "cuda" where worker k has GPU k of the machine.

    Raises:
        ResourceError: another worker of this machine ended before its time (what it said stands on stderr),
            or a launcher has started another number of them.
    """
    if launched():
        with _launched(size, device):
            from_leader(args)
            yield
        return
    if size == 1:
        was_there = dist.is_initialized()
        try:
            yield
        finally:
            if dist.is_initialized() and not was_there:  # of one, for sharding
                dist.destroy_process_group()
        return
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        others: list[tuple[SpawnProcess, Any]] = []  # and their pipes
        for number in range(1, size):
            here, theirs = context.Pipe()
            process = context.Process(
                target=_member, args=(theirs, number, size, meeting, device, member, args), daemon=True
            )
            process.start()
            others.append((process, here))
        try:
            for process, here in others:  # else a worker that died early would be waited for
                if here not in wait([here, process.sentinel]):
                    raise _death(process)
            _join(device, 0, size, meeting)
            yield
            barrier()
        except RuntimeError as error:
            for process, _ in others:
                process.join(timeout=5)
                if process.exitcode:
                    raise _death(process) from error
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for process, _ in others:
                process.join(timeout=10)
                process.kill()


def launched() -> bool:
    """Whether a launcher has started this process as one of several workers."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "TORCHELASTIC_RUN_ID" in os.environ


def follows() -> bool:
    """Whether a launcher has started this process as another worker than worker 0."""
    return launched() and os.environ["RANK"] != "0"


def cores_here(size: int) -> int:
    """Cores of this machine for each of `size` workers, at least one."""
    if launched():  # which has given each process one thread, and may have started others elsewhere
        return max(1, len(os.sched_getaffinity(0)) // int(os.environ["LOCAL_WORLD_SIZE"]))
    return max(1, torch.get_num_threads() // size)


def follow(size: int, member: Callable[..., None], *, device: str = "cpu") -> None:
    """In a process that `follows`: run `member` with the arguments that worker 0 gives its `team`."""
    with _launched(size, device):
        member(*from_leader(()))


@contextmanager
def _launched(size: int, device: str) -> Iterator[None]:
    started = int(os.environ["WORLD_SIZE"])
    if started != size:
        raise ResourceError(
            f"the launcher has started {started} workers, the recipe asks for {size}: set workers={started}"
        )
    _join(device)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _death(process: SpawnProcess) -> ResourceError:
    return ResourceError(
        f"a worker of this run ended with exit code {process.exitcode} (-9: killed, mostly for want of "
        "memory; else see its message above): mend that, or set workers=1; then resume"
    )


def _join(device: str, rank: int = -1, size: int = -1, meeting: str | None = None) -> None:
    """As worker `rank` of `size` that meet at a file; without these as the launcher says."""
    backend = "gloo"
    if device == "cuda":
        if meeting is not None:
            os.environ["LOCAL_RANK"] = str(rank)
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    where = "env://" if meeting is None else f"file://{meeting}"
    # worker 0 evaluates alone, for as long as that takes
    dist.init_process_group(
        backend, init_method=where, rank=rank, world_size=size, timeout=timedelta(hours=2)
    )


def _member(
    ready: Connection,
    rank: int,
    size: int,
    meeting: str,
    device: str,
    member: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    threading.Thread(target=end_with_parent, daemon=True).start()
    ready.send(rank)
    _join(device, rank, size, meeting)
    member(*args)
    barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # no thread of a library is left to be unwound, which has ended workers by signal 6


def end_with_parent() -> None:
    """Wait for the parent process, then end this one: for a thread of a process that must not outlive it."""
    parent = mp.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def rank() -> int:
    """This worker's number; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of workers."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until every worker is here. *Collective.*"""
    if world_size() > 1:
        dist.barrier()


def totals(values: Sequence[float]) -> list[float]:
    """Each value summed over the workers. *Collective.*"""
    if world_size() == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def interleaved(share: Tensor, total: int) -> Tensor:
    """The whole of a tensor with `total` rows, of which each worker has every n-th: worker k's first row is
    row k. *Collective.*
    """
    if world_size() == 1:
        return share
    whole = share.new_zeros(total, *share.shape[1:])
    whole[rank() :: world_size()] = share
    dist.all_reduce(whole)
    return whole


def from_leader(value: Any) -> Any:
    """Worker 0's value, on every worker; what the others pass is ignored. *Collective.*"""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def shard(
    model: nn.Module,
    mesh: DeviceMesh,
    blocks: Iterable[nn.Module],
    *,
    forward_methods: Sequence[str] = ("prefill", "velocity"),
    compute_dtype: torch.dtype | None = None,
) -> None:
    """Shard the parameters over the mesh, in place: each block on its own, then the rest with the root.

    Call it before the optimizer is built: parameters become DTensors, whose master copy keeps its dtype. With
    one worker and no `compute_dtype` this changes nothing. *Collective.*

    Args:
        blocks: the decoder layers; each is gathered just before it is used.
        forward_methods: methods of the model other than `forward` that compute with its parameters.
        compute_dtype: dtype of the gathered parameters and activations, e.g. bfloat16; None keeps the
            master's. Gradients are always reduced in fp32.
    """
    if mesh.size() == 1 and compute_dtype is None:
        return
    # Inputs are cast where they are used. FSDP2's own casting rebuilds every dataclass among the arguments: a
    # cache would be a copy that the caller never sees, and times would be rounded.
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    for method in forward_methods:
        register_fsdp_forward_method(model, method)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Keep parameters gathered between calls, inside the block.

    Sampling then gathers each layer once instead of once per denoising step, for the memory of the unsharded
    model meanwhile. *Collective.*
    """
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            # the root's parameters stay gathered between forward and backward, as FSDP2 does by default
            module.set_reshard_after_forward(module is not model, recurse=False)


def forget_gathered(model: nn.Module) -> None:
    """Make a sharded model gather its parameters anew: after they were changed by hand, gathered copies, such
    as the root keeps after a forward pass, are stale."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their mean over all workers, in one blocking reduction: data parallelism on plain,
    replicated parameters. A gradient that is None counts as 0, unless it is None everywhere. *Collective.*
    """
    if world_size() == 1:
        return
    parameters = list(parameters)
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
    dist.all_reduce(present, dist.ReduceOp.MAX)
    trained = [p for p, there in zip(parameters, present.tolist(), strict=True) if there]
    flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
    dist.all_reduce(flat)
    flat /= world_size()
    for parameter, mean in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
        parameter.grad = mean.view_as(parameter)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale the gradients so that their global 2-norm is at most `max_norm`. *Collective.*

    Returns:
        The norm before clipping, over all parameters and workers; not finite if a gradient isn't.
    """
    norm = clip_grad_norm_([p for p in parameters if p.grad is not None], max_norm)
    return float(_full(norm))


def full_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some tensors of a model, gathered to full-size CPU tensors on rank 0; the others get an empty dict.
    *Collective.*"""
    return {name: value for name, value in _gather(tensors, rank() == 0) if rank() == 0}


@torch.no_grad()
def load_full_tensors(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy full-size tensors, which every worker holds, into plain or sharded ones; no communication.

    Raises:
        CheckpointError: on missing or misshaped tensors; nothing is then copied.
    """
    wrong = [n for n, own in tensors.items() if n not in state or state[n].shape != own.shape]
    if wrong:
        raise CheckpointError(
            f"the checkpoint doesn't fit: {wrong[:5]} are missing or of another shape ({len(wrong)} in all). "
            "Resume with the configuration that wrote it."
        )
    for name, target in tensors.items():
        copy_full(target, state[name])


def full_state_dict(model: nn.Module, *, on_all_ranks: bool = False) -> dict[str, Tensor]:
    """Parameters and persistent buffers, gathered to full-size CPU tensors. *Collective.*

    Args:
        on_all_ranks: by default rank 0 gets the result and the others an empty dict.
    """
    keep = on_all_ranks or rank() == 0
    return {name: value for name, value in _gather(model.state_dict(), keep) if keep}


def load_full_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load full-size tensors, which every worker holds, into a plain or sharded model; no communication.

    Raises:
        CheckpointError: on missing, unknown or misshaped tensors; the model is then unchanged.
    """
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshaped = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or extra or misshaped:
        raise CheckpointError(
            f"the state doesn't fit the model: missing {missing[:5]}, unknown {extra[:5]}, of other shape "
            f"{sorted(misshaped)[:5]} ({len(missing)}, {len(extra)}, {len(misshaped)} in all). "
            "Resume with the configuration that wrote it."
        )
    with torch.no_grad():
        for name, target in own.items():
            copy_full(target, state[name])


def full_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, on_all_ranks: bool = False
) -> OptimizerState:
    """The optimizer's tensors by parameter name, gathered to full size on the CPU. *Collective.*

    Parameters that were never stepped (frozen ones) have no entry. Learning rates and the like are
    configuration and not part of it.

    Args:
        on_all_ranks: by default rank 0 gets the result and the others an empty dict.
    """
    keep = on_all_ranks or rank() == 0
    gathered_state: OptimizerState = {}
    for name, parameter in model.named_parameters():
        slots = optimizer.state.get(parameter, {})
        entry = dict(_gather({k: v for k, v in slots.items() if isinstance(v, Tensor)}, keep))
        if keep and entry:
            gathered_state[name] = entry
    return gathered_state


def load_full_optimizer_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Restore what `full_optimizer_state` gathered, on any number of workers; no communication.

    Raises:
        CheckpointError: if it names a parameter that the optimizer doesn't train.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    parameters = {name: p for name, p in model.named_parameters() if id(p) in trained}
    unknown = sorted(state.keys() - parameters.keys())
    if unknown:
        raise CheckpointError(
            f"optimizer state for parameters that aren't trained here: {unknown[:5]} "
            f"({len(unknown)} in all). Resume with the configuration that wrote it."
        )
    optimizer.state.clear()
    for name, slots in state.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {slot: _like(parameter, value) for slot, value in slots.items()}


def _gather(tensors: Mapping[str, Tensor], keep: bool) -> Iterator[tuple[str, Tensor]]:
    """(name, full CPU copy) one at a time; every worker takes part, only those that keep get a copy."""
    for name, value in tensors.items():
        full = _full(value.detach())
        yield name, full.to("cpu", copy=True) if keep else full.new_empty(0)


def _full(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    """`value` sharded and placed as `parameter`; step counts, which have another shape, stay as they are."""
    if value.shape != parameter.shape:
        return value.clone()
    if isinstance(parameter, DTensor):
        local = value.to(parameter.device, copy=True)
        return distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device, copy=True)


def copy_full(target: Tensor, value: Tensor) -> None:
    """Copy a full-size tensor, which every worker holds, into a plain or sharded one; no communication."""
    if isinstance(target, DTensor):
        value = value.to(device=target.device, dtype=target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)
