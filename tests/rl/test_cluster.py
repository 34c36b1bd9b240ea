"""Ray and verl's controller behind one door."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tensordict import TensorDict

from experiments.rl_run import object_store_mb
from gvcot.config import load
from gvcot.distributed import init_process_group
from gvcot.errors import CheckpointError, ResourceError, RewardError
from rl import cluster
from rl.config import RLConfig


def echo_worker() -> type[cluster.Worker]:
    """A worker class that travels by value: this file can't be imported by name in a worker."""

    class EchoWorker(cluster.Worker):
        """Adds numbers over gloo, reports its rank, fails when asked to."""

        def __init__(self, offset: int) -> None:
            super().__init__()
            init_process_group("cpu")
            self._register_dispatch_collect_info(cluster.MESH, self.rank, True)
            self.offset = offset

        @cluster.register(dispatch_mode=cluster.dispatch_nd)
        def shift(self, batch: TensorDict) -> TensorDict:
            rank = torch.full((len(batch),), self.rank)
            return TensorDict({"y": batch["x"] + self.offset, "rank": rank}, batch_size=[len(batch)])

        @cluster.register(dispatch_mode=cluster.Dispatch.ONE_TO_ALL)
        def total(self) -> tuple[float, int]:
            value = torch.tensor(float(self.rank + 1))
            dist.all_reduce(value)
            return value.item(), torch.get_num_threads()

        @cluster.register(dispatch_mode=cluster.Dispatch.ONE_TO_ALL)
        def machine(self) -> str:
            import ray

            return ray.get_runtime_context().get_node_id()

        @cluster.register(dispatch_mode=cluster.Dispatch.ONE_TO_ALL)
        def fail(self) -> None:
            raise CheckpointError("step_3/state.json is truncated; resume from an earlier step")

    return EchoWorker


def test_too_many_workers_are_refused_before_anything_starts():
    with pytest.raises(ResourceError, match=r"asks for 4096 CPUs .* this machine has \d+\. Lower the number"):
        cluster.start(num_workers=1024, cpus_per_worker=4)


def test_missing_gpus_are_refused():
    too_many = torch.cuda.device_count() + 1
    with pytest.raises(ResourceError, match="GPUs"):
        cluster.start(num_workers=too_many, cpus_per_worker=0, gpus_per_worker=1)


def test_unreachable_cluster_is_named():
    with pytest.raises(ResourceError, match="127.0.0.1:1"):
        cluster.start(num_workers=1, address="127.0.0.1:1")


def test_uneven_spread_over_machines_is_refused():
    with pytest.raises(ResourceError, match="multiple of 2"):
        cluster.worker_group(echo_worker(), 3, 0, num_nodes=2)


def test_a_worker_enters_the_folder_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path.cwd())  # back at the end
    monkeypatch.setenv(cluster.FOLDER, str(tmp_path))
    cluster.enter_folder()
    assert Path.cwd() == tmp_path
    monkeypatch.setenv(cluster.FOLDER, str(tmp_path / "gone"))
    with pytest.raises(ResourceError, match="gone, where the run was started .* same paths on all machines"):
        cluster.enter_folder()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no shared memory that is a folder")
def test_drawn_images_get_shared_memory_as_far_as_there_is_some():
    small, large = load(RLConfig, "rl/tiny"), load(RLConfig, "rl/bagel7b-grpo-full")
    assert object_store_mb(small, 2) == 300
    shared = shutil.disk_usage("/dev/shm").free >> 20
    assert object_store_mb(large, 2) == pytest.approx(max(300, min(3072, 0.8 * shared)), abs=50)


def squarer() -> type:
    """A job of an actor pool; local, so that it travels by value."""

    class Squarer:
        def __init__(self, offset: int) -> None:
            self._offset, self._done = offset, 0

        def square(self, x: int) -> tuple[int, int]:
            """The result, and how many this actor has had."""
            if x < 0:
                raise RewardError(f"cannot take {x}")
            self._done += 1
            return x * x + self._offset, self._done

    return Squarer


@pytest.mark.slow
def test_a_pool_shares_jobs_out_keeps_their_order_and_raises_their_own_errors():
    cluster.start(num_workers=1)
    try:
        pool = cluster.ActorPool(squarer(), 2, 100, cpus=0.25)
        jobs = [pool.submit("square", x) for x in range(4)]
        results = pool.gather(jobs)
        assert [value for value, _ in results] == [100, 101, 104, 109]
        assert max(done for _, done in results) == 2
        assert pool.num_pending() == 0
        with pytest.raises(RewardError, match="^cannot take -1"):
            pool.gather([pool.submit("square", -1)])
        assert pool.gather([pool.submit("square", 2)])[0][0] == 104
    finally:
        cluster.stop()


@pytest.mark.slow  # about 20 s: three processes import torch and verl
def test_two_workers_share_a_batch_reduce_over_gloo_and_raise_their_own_errors():
    cluster.start(num_workers=2)
    try:
        group = cluster.worker_group(echo_worker(), 2, 10)
        assert group.total() == [(3.0, 1), (3.0, 1)]  # 1 + 2 on both; one thread each

        out = group.shift(TensorDict({"x": torch.arange(4.0)}, batch_size=[4]))
        assert out["y"].tolist() == [10.0, 11.0, 12.0, 13.0]
        assert out["rank"].tolist() == [0, 0, 1, 1]

        with pytest.raises(CheckpointError, match=r"^step_3/state.json is truncated"):
            group.fail()
        assert group.total() == [(3.0, 1), (3.0, 1)]  # a failed call leaves the group usable
    finally:
        cluster.stop()
    cluster.stop()


@pytest.mark.slow
def test_workers_are_spread_over_machines(two_machines: str):
    with pytest.raises(ResourceError, match="the cluster's 2 machines have room for 0. Spread"):
        cluster.start(num_workers=2, address=two_machines)
    cluster.start(num_workers=2, address=two_machines, num_nodes=2)
    group = cluster.worker_group(echo_worker(), 2, 10, num_nodes=2)
    assert len(set(group.machine())) == 2
    assert group.total() == [(3.0, 1), (3.0, 1)]
    out = group.shift(TensorDict({"x": torch.arange(4.0)}, batch_size=[4]))
    assert out["y"].tolist() == [10.0, 11.0, 12.0, 13.0]
