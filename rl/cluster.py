"""The one door to Ray and to verl's single controller: start workers, call them, stop them.

    cluster.start(num_workers=2)
    policy = cluster.worker_group(PolicyWorker, 2, recipe)
    scores = policy.rollout(batch)          # a TensorDict, cut over the workers and joined again
    cluster.stop()

A worker class derives from `Worker`, registers its data-parallel rank in `__init__`
(`self._register_dispatch_collect_info(MESH, self.rank, True)`) and marks its methods:

    @register(dispatch_mode=dispatch_nd)            rows of a TensorDict are dealt to the workers in order
    @register(dispatch_mode=ONE_TO_ALL)             every worker gets the same arguments; returns a list

Work that can fail for a user's reasons (reading a checkpoint, say) belongs in a method and not in `__init__`:
an error there kills the worker, and only its text survives.

Importing this module costs about five seconds, so nothing outside the trainer and its workers should.
"""

from __future__ import annotations

# ruff: noqa: E402  the environment is set before Ray and verl are imported
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

# Ray and verl read these when they are imported, in the driver and in every worker.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # Ray 2.60 asks for a token by default
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# when several workers fail at once the first error is raised; the others would be printed, unasked
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
os.environ.setdefault("VERL_LOGGING_LEVEL", "WARNING")
if not torch.cuda.is_available():
    os.environ.setdefault("VERL_PLATFORM", "cpu")
    os.environ.setdefault("VERL_USE_EXTERNAL_MODULES", "rl.cpu_platform")

from gvcot.torchvision_cpu import declare_missing_operators

declare_missing_operators()

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import remove_placement_group
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import (
    Dispatch,
    Execute,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.single_controller.ray import RayClassWithInitArgs, RayResourcePool, RayWorkerGroup
from verl.trainer.ppo.core_algos import agg_loss

from gvcot.errors import GvcotError, ResourceError

__all__ = [
    "MESH",
    "ONE_TO_ALL",
    "Dispatch",
    "Execute",
    "Worker",
    "WorkerGroup",
    "agg_loss",
    "dispatch_nd",
    "enter_folder",
    "register",
    "start",
    "stop",
    "worker_group",
]

MESH = "policy"
"""Name of the data-parallel mesh that workers register themselves in."""

ONE_TO_ALL = Dispatch.ONE_TO_ALL  # pyright: ignore[reportAttributeAccessIssue]
"""Dispatch mode: every worker gets the same arguments. (verl adds the members of its enum at run time.)"""

dispatch_nd = make_nd_compute_dataproto_dispatch_fn(mesh_name=MESH)
"""Dispatch mode: the rows of a TensorDict go to the workers in order and come back in order."""

FOLDER = "GVCOT_FOLDER"
"""Environment variable of workers: where the run was started."""

CHECKOUT = Path(__file__).resolve().parents[1]
"""Workers import the project's packages from here, whatever directory they run in."""

_CLUSTER_REMEDY = (
    "Start one with `ray start --head`, or leave the address empty to run on this machine alone."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Started:
    group: RayWorkerGroup
    pool: RayResourcePool


_started: list[_Started] = []


class WorkerGroup(RayWorkerGroup):
    """verl's worker group, whose calls raise a worker's own `GvcotError` instead of Ray's wrapping of it."""

    def _bind_worker_method(self, user_defined_cls: Any, func_generator: Callable[..., Any]) -> list[str]:
        def unwrapping(*args: Any, **kwargs: Any) -> Callable[..., Any]:
            return _raising_causes(func_generator(*args, **kwargs))

        return super()._bind_worker_method(user_defined_cls, unwrapping)

    if TYPE_CHECKING:  # the worker class's registered methods, which verl binds at run time

        def __getattr__(self, name: str) -> Callable[..., Any]: ...


def start(
    num_workers: int,
    cpus_per_worker: int = 1,
    *,
    gpus_per_worker: int = 0,
    address: str | None = None,
    num_nodes: int = 1,
    other_cpus: float = 0.0,
    other_gpus: float = 0.0,
    object_store_mb: int = 300,
    log_to_driver: bool = False,
) -> None:
    """Start Ray on this machine, or join a running cluster, after checking that the workers will fit.

    Args:
        num_workers: processes that `worker_group` will be asked for, in all.
        cpus_per_worker: CPUs reserved for each, and its number of threads.
        gpus_per_worker: 0 or 1.
        address: of a running Ray cluster ("auto" for the one this machine belongs to). The checkout must lie
            at the same path on all of its machines. None starts Ray here.
        num_nodes: machines of the cluster that the workers will be spread over.
        other_cpus, other_gpus: in all, for actors of an `ActorPool`.
        object_store_mb: shared memory for data in flight between processes; only for a Ray started here.
        log_to_driver: print what workers print.

    Raises:
        ResourceError: if CPUs or GPUs don't suffice, or the cluster can't be reached. Without this check a
            worker that doesn't fit would be waited for forever.
    """
    asked = {
        "CPU": num_workers * cpus_per_worker + other_cpus,
        "GPU": num_workers * gpus_per_worker + other_gpus,
    }
    env_vars = _worker_env(cpus_per_worker, use_gpu=gpus_per_worker > 0)
    if address is None:
        have = {"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}
        _check_resources(asked, have, "this machine has")
        # Workers inherit the environment; Ray's idle workers would only steal CPU from the ones asked for.
        ray.init(
            address="local",  # not a cluster that happens to run on this machine
            num_cpus=have["CPU"],
            num_gpus=have["GPU"],
            include_dashboard=False,
            object_store_memory=object_store_mb << 20,
            log_to_driver=log_to_driver,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": env_vars},
            _system_config={"prestart_worker_first_driver": False, "enable_worker_prestart": False},
        )
        return
    share = {
        "CPU": num_workers // num_nodes * cpus_per_worker,
        "GPU": num_workers // num_nodes * gpus_per_worker,
    }
    _join(address, asked, share, num_nodes, log_to_driver=log_to_driver, runtime_env={"env_vars": env_vars})


def _join(
    address: str, asked: dict[str, float], share: dict[str, int], num_nodes: int, **options: Any
) -> None:
    """Join a running cluster; leave it again if the workers won't fit. `options` are `ray.init`'s."""
    if asked["GPU"] and not torch.cuda.is_available():
        raise ResourceError(
            "the workers are to have GPUs, and the machine that starts them has none, by which verl decides "
            "what to reserve: start the run on a machine of the cluster with a GPU"
        )
    _check_reachable(address)
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise ResourceError(f"no Ray cluster answers at {address!r} ({error}). {_CLUSTER_REMEDY}") from error
    free = ray.available_resources()
    try:
        _check_resources(asked, {name: int(free.get(name, 0)) for name in asked}, "the cluster has free")
        _check_machines(share, num_nodes)
    except ResourceError:
        ray.shutdown()
        raise


def worker_group(
    cls: type[Worker],
    num_workers: int,
    *args: Any,
    num_nodes: int = 1,
    cpus_per_worker: int = 1,
    use_gpu: bool = False,
) -> WorkerGroup:
    """Create `num_workers` processes of a worker class and bind its registered methods.

    Returns at once; the first call waits until the processes are up.

    Args:
        cls: worker class, importable by name.
        args: passed to every worker's `__init__`.
        num_nodes: machines to spread over, evenly.
        cpus_per_worker: as in `start`.
        use_gpu: give each worker one GPU.

    Raises:
        ResourceError: if the workers can't be spread evenly.
    """
    if num_workers % num_nodes:
        raise ResourceError(
            f"{num_workers} workers can't be spread evenly over {num_nodes} machines; "
            f"ask for a multiple of {num_nodes}."
        )
    pool = RayResourcePool(
        process_on_nodes=[num_workers // num_nodes] * num_nodes,
        use_gpu=use_gpu,
        # verl reserves this many CPUs per process, and shares a GPU among as many: hence 1 on GPUs
        max_colocate_count=1 if use_gpu else cpus_per_worker,
    )
    group = WorkerGroup(
        resource_pool=pool,
        ray_cls_with_init=RayClassWithInitArgs(ray.remote(cls), *args),
        device_name="cuda" if use_gpu else "cpu",
    )
    _started.append(_Started(group=group, pool=pool))
    return group


class ActorPool:
    """Processes of one class that take jobs one at a time, the least busy first."""

    def __init__(self, cls: type, num_actors: int, *args: Any, cpus: float = 1.0, gpus: float = 0.0) -> None:
        """
        Args:
            cls: a plain class, importable by name.
            args: passed to every actor's `__init__`.
            cpus, gpus: reserved for each; fractions are allowed.
        """
        remote = ray.remote(cls).options(num_cpus=cpus, num_gpus=gpus)
        self._actors = [remote.remote(*args) for _ in range(num_actors)]
        self._pending: list[list[ray.ObjectRef]] = [[] for _ in self._actors]

    def __len__(self) -> int:
        return len(self._actors)

    def submit(self, method: str, *args: Any) -> ray.ObjectRef:
        """Ask the actor with the fewest unfinished jobs; returns at once, with a promise for `gather`."""
        self.num_pending()
        chosen = min(range(len(self._actors)), key=lambda i: len(self._pending[i]))
        job = getattr(self._actors[chosen], method).remote(*args)
        self._pending[chosen].append(job)
        return job

    def call_all(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every actor and wait for all results; raises an actor's own `GvcotError`."""
        return self.gather([getattr(actor, method).remote(*args) for actor in self._actors])

    def num_pending(self) -> int:
        """Jobs that are not finished."""
        for jobs in self._pending:
            _, jobs[:] = ray.wait(jobs, num_returns=len(jobs), timeout=0) if jobs else ([], [])
        return sum(map(len, self._pending))

    def gather(self, jobs: list[ray.ObjectRef]) -> list[Any]:
        """Results in the order of `jobs`; raises a job's own `GvcotError`."""
        return _raising_causes(ray.get)(jobs)


def enter_folder() -> None:
    """In a worker: go to where the run was started, so that relative paths mean the same. On a cluster
    workers begin where Ray was started.

    Raises:
        ResourceError: this machine has no such folder.
    """
    folder = os.environ.get(FOLDER, ".")
    try:
        os.chdir(folder)
    except OSError as error:
        raise ResourceError(
            f"a worker cannot enter {folder}, where the run was started ({error}); checkout, data and runs "
            "must lie at the same paths on all machines"
        ) from error


def stop() -> None:
    """End all workers, free their reservations and leave Ray. Safe to call twice."""
    while _started:
        started = _started.pop()
        for worker in started.group.workers:
            ray.kill(worker)
        for placement_group in started.pool.pgs or []:
            remove_placement_group(placement_group)
    ray.shutdown()


def _worker_env(threads: int, *, use_gpu: bool) -> dict[str, str]:
    search_path = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        "OMP_NUM_THREADS": str(threads),
        FOLDER: os.getcwd(),
        "PYTHONPATH": os.pathsep.join(search_path),
        "RAY_AUTH_MODE": os.environ["RAY_AUTH_MODE"],
        "VERL_LOGGING_LEVEL": os.environ["VERL_LOGGING_LEVEL"],
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not use_gpu:
        env |= {"VERL_PLATFORM": "cpu", "VERL_USE_EXTERNAL_MODULES": "rl.cpu_platform"}
    return env


def _check_reachable(address: str, timeout_s: float = 5.0) -> None:
    """Ask "host:port" for a connection: Ray itself would keep trying for minutes, then end the process."""
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except OSError as error:
        raise ResourceError(f"no Ray cluster answers at {address!r} ({error}). {_CLUSTER_REMEDY}") from error


def _check_resources(asked: dict[str, float], have: dict[str, int], where: str) -> None:
    for name, number in asked.items():
        if number > have[name]:
            raise ResourceError(
                f"the recipe asks for {number:g} {name}s for its workers, but {where} {have[name]}. "
                "Lower the number of workers or of CPUs per worker, or use a larger machine or cluster."
            )


def _check_machines(share: dict[str, int], num_nodes: int) -> None:
    """Workers of one machine's share are never split; a share that fits nowhere would be waited for."""
    from ray._private.state import available_resources_per_node  # no public function says it by machine

    free = list(available_resources_per_node().values())
    needed = {name: number for name, number in share.items() if number}
    if not needed:
        return
    shares = sum(min(int(m.get(name, 0) // number) for name, number in needed.items()) for m in free)
    if shares < num_nodes:
        raise ResourceError(
            f"the recipe asks for {num_nodes} times {share['CPU']} CPUs and {share['GPU']} GPUs, each on one "
            f"machine; the cluster's {len(free)} machines have room for {shares}. Spread the workers over "
            "more machines (cluster.num_nodes), so that each needs less, or lower their number"
        )


def _raising_causes(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except RayTaskError as error:
            if isinstance(error.cause, GvcotError):
                raise error.cause from error
            raise
        except RayActorError as error:
            raise ResourceError(
                f"a worker process is gone: {error}\n"
                "If it was killed, it probably ran out of memory: use a smaller batch or fewer workers."
            ) from error

    return wrapped
