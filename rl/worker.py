"""The policy worker: samples, scores, updates and evaluates on one process of the policy's mesh.

Legend: P prompts and B = P * G chains on this worker, K phases.
"""

from __future__ import annotations

import copy
import random
import resource
from dataclasses import replace
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import Tensor

from gvcot import checkpoint, distributed, seeds
from gvcot.chain import Chain
from gvcot.model.codec import Codec
from gvcot.model.config import UnifiedConfig
from gvcot.model.place import place
from gvcot.model.pretrained import load_pretrained, save_pretrained
from gvcot.model.unified import UnifiedModel
from gvcot.sampler import condition_of, draw
from rewards.registry import build_rewards
from rl import probes
from rl.cluster import MESH, ONE_TO_ALL, Worker, dispatch_nd, enter_folder, register
from rl.config import RLConfig
from rl.learner import Learner, Update
from rl.objectives import Drawn
from rl.scoring import Scorer, TrainingPrompts, evaluation_set, prompts_of, provides
from rollout.sample import chain_noise, window_denoiser
from rollout.tensors import from_tensordict, to_tensordict
from rollout.window import draw_windows


class PolicyWorker(Worker):
    """One process of the policy: learner and train-side sampler on the same weights, so there is no weight
    sync and no mismatch between sampling and training."""

    def __init__(self, config: RLConfig) -> None:
        super().__init__()
        torch.set_num_threads(config.cluster.cpus_per_worker)
        self._register_dispatch_collect_info(MESH, self.rank, True)
        self._config = config

    @register(dispatch_mode=ONE_TO_ALL)
    def load(self, model_dir: str) -> None:
        """Read the checkpoint folder, shard the model, build rewards and optimiser.

        Raises:
            CheckpointError, ConfigError, ResourceError: see `load_pretrained`, `build_rewards` and
                `enter_folder`.
        """
        enter_folder()
        config = self._config
        device = "cuda" if config.cluster.gpus_per_worker else "cpu"
        mesh = distributed.init_process_group(device)
        torch.manual_seed(config.seed)
        random.seed(config.seed)
        sharded = config.cluster.sharding == "fsdp2"
        self._policy = load_pretrained(Path(model_dir), images=config.images, weights=not sharded)
        model = self._policy.model
        self._policy.codec.to(device)
        self._chain = Chain(config.chain, self._policy.tokenizer, has_vit=model.config.vit is not None)
        self._rewards = build_rewards(config.rewards, provides(self._chain, config.data.pairs))
        for reward in self._rewards.values():
            reward.start()
        anchored = config.loss.kl_coef > 0 and config.lora is None
        # copied before it is sharded: a sharded model can't be
        reference = copy.deepcopy(model) if anchored else None
        where = {
            "device": device,
            "compute": config.compute,
            "mesh": mesh if sharded else None,
            "folder": Path(model_dir),
        }
        place(model, lora=config.lora, seed=config.seed, **where)
        if reference is not None:
            place(reference, **where)
            reference.requires_grad_(False)
        self._learner = Learner(config, model, self._chain, self.world_size, reference)
        self._samples = TrainingPrompts(config.data)
        self._held_out = evaluation_set(config)
        self._scorer = Scorer(self._rewards, self._policy.codec, self._samples, device)

    @register(dispatch_mode=dispatch_nd)
    @torch.no_grad()
    def rollout(self, prompts: TensorDict) -> TensorDict:
        """P rows {"index", "position", "step"} -> B rows of `rollout.tensors` with the prompt's columns."""
        config = self._config
        step, how = int(prompts["step"][0]), self._learner.objective.sampling
        windows = draw_windows(
            config.seed,
            step,
            how.num_steps,
            how.window_size,
            *how.window_range,
            phases=[p.name for p in self._chain.phases],
        )
        positions = prompts["position"].tolist()
        chain_seeds_B = rollout_seeds(config, step, positions)
        condition = condition_of(self._samples(prompts["index"]), *self._encoders())
        with distributed.gathered(self._policy.model):
            drawn = draw(
                self._policy.model,
                self._policy.codec,
                self._chain,
                condition,
                denoise=window_denoiser(how, windows, chain_seeds_B),
                noise=chain_noise(initial_seeds(config, step, positions)),
                chains_per_prompt=config.group_size,
            )
        rows = to_tensordict(drawn.trajectory, drawn.images)
        for key in ("index", "position", "step"):
            rows[key] = prompts[key].repeat_interleave(config.group_size)
        return rows

    @register(dispatch_mode=dispatch_nd)
    def score(self, chains: TensorDict) -> TensorDict:
        """B drawn chains -> B rows; see `Scorer`."""
        return self._scorer(chains)

    @register(dispatch_mode=dispatch_nd)
    def update(self, chains: TensorDict) -> TensorDict:
        """B chains with "advantage" (B, K), "kept" (B, K) and "num_kept" (B,) -> one row of metrics."""
        index_P, prompt_B = prompts_of(chains["index"])
        condition = condition_of(self._samples(index_P), *self._encoders())
        names = tuple(phase.name for phase in self._chain.phases)
        step, group = int(chains["step"][0]), self._config.group_size
        chain_seeds_B = rollout_seeds(self._config, step, chains["position"][::group].tolist())
        trajectory = from_tensordict(chains, condition, names)
        data = Update(
            drawn=Drawn(trajectory=trajectory, prompt_B=prompt_B, chain_seeds_B=chain_seeds_B),
            advantage_BK=chains["advantage"],
            kept_BK=chains["kept"],
            num_kept=float(chains["num_kept"][0]),
        )
        metrics = self._learner.update(data, step)
        metrics["peak_memory_gb_max"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return TensorDict({k: torch.tensor([v]) for k, v in metrics.items()}, batch_size=[1])

    @register(dispatch_mode=dispatch_nd)
    def evaluate(self, rows: TensorDict) -> TensorDict:
        """Rows {"index"} of the evaluation set -> per-sample values and images of the averaged policy."""
        config = self._config
        samples = [self._held_out.sample(int(i)) for i in rows["index"]]
        with self._learner.averaged(), distributed.gathered(self._policy.model):
            result = probes.evaluate(
                self._policy,
                self._chain,
                self._rewards,
                samples,
                num_steps=config.eval.num_steps or config.rollout.num_steps,
                shift=config.rollout.shift,
                seed=config.seed,
                batch=config.eval.batch,
                probes=config.eval.probes,
                guidance=config.eval.guidance,
            )
        leaves = {f"values/{name}": v for name, v in result.values.items()}
        leaves |= {f"images/{name}": v for name, v in result.images.items()}
        return TensorDict(leaves, batch_size=[len(samples)])

    @register(dispatch_mode=ONE_TO_ALL)
    def save(self, folder: str, step: int) -> None:
        """Rank 0 writes weights, average and optimiser, gathered from all ranks, into an existing folder."""
        tensors = self._learner.state()
        if self.rank == 0:
            checkpoint.save_state(folder, tensors, {"step": step})

    @register(dispatch_mode=ONE_TO_ALL)
    def restore(self, folder: str) -> None:
        """Continue from what `save` wrote, on any number of workers."""
        tensors, _ = checkpoint.load_state(folder)
        self._learner.restore(tensors)

    @register(dispatch_mode=ONE_TO_ALL)
    def export(self, folder: str, record: dict[str, object]) -> None:
        """Rank 0 writes the averaged policy as a checkpoint folder that `load_pretrained` reads."""
        with self._learner.averaged():
            state = distributed.full_state_dict(self._policy.model)
        if self.rank == 0:
            plain = UnifiedModel(self._policy.model.config)
            plain.load_state_dict(self._plain(state))
            save_pretrained(Path(folder), replace(self._policy, model=plain), record)

    def _plain(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights of the model without adapters that computes the same."""
        if self._config.lora is None:
            return state
        from gvcot.model.lora import merged

        return merged(self._policy.model, state)

    def _encoders(self) -> tuple[UnifiedConfig, Codec, Chain]:
        return self._policy.model.config, self._policy.codec, self._chain


def rollout_seeds(config: RLConfig, step: int, positions: list[int]) -> list[int]:
    """A seed per chain, however prompts are dealt to workers."""
    size = range(config.group_size)
    return [seeds.derive(config.seed, "chain", step, p, g) for p in positions for g in size]


def initial_seeds(config: RLConfig, step: int, positions: list[int]) -> list[int]:
    """The seed of each chain's initial noise: its own, or its group's (`rollout.initial_noise`)."""
    if config.rollout.initial_noise == "chain":
        return rollout_seeds(config, step, positions)
    return [seeds.derive(config.seed, "group", step, p) for p in positions for _ in range(config.group_size)]
