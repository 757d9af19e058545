"""The DeepSpeed engine: our model under DeepSpeed's ZeRO 0, 1, 2 or 3."""

import contextlib
import io
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...batch import Batch
from ...build import build_model
from ...config import ModelConfig
from ...grid import Grid
from ...model import Loads, Model, ModelOutput
from ...optim.rules import STATE, rule
from ...optim.schedule import learning_rate
from ...stages import CLOCK, waiting
from ...state.names import buffer_shards, fill_buffers
from ...state.shard import Shard
from ...state.source import Source
from ..base import NO_HOOKS, StepHooks, StepMetrics
from ..metrics import Tally, count_loads, count_totals, evaluate
from ..options import EngineOptions
from . import state as held_state
from .gate import Gate
from .state import Named
from .whole_optimizer import WholeOptimizer


class Trainee(nn.Module):
    """What DeepSpeed sees: the model, with the loss in a tuple, where its hooks can find it."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, batch: Batch, counted: Loads = ()
    ) -> tuple[torch.Tensor, torch.Tensor, Loads]:
        """The fields of ModelOutput."""
        # Without Model's own hooks its direct parameters count as ours: ZeRO 3 then gathers them
        # for the backward pass too, which it starts from the tensors in the output.
        out = self.model.forward(batch, counted)
        return out.loss_sum, out.aux_sum, out.loads


class DeepSpeedEngine:
    """Lets DeepSpeed reduce the gradients, partition and update."""

    model: Model
    before_update: Callable[[], None]

    def __init__(self, options: EngineOptions, grid: Grid) -> None:
        self.options, self.grid = options, grid
        self.zero = options.layout.zero
        self.steps_done = self.skipped = 0
        self.before_update = lambda: None
        self._gate = Gate()

    def setup(self, device: torch.device) -> None:
        """Import DeepSpeed for `device`."""
        self.device = device
        os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
        if device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        import deepspeed.ops

        # It lists what DeepSpeed may compile at start; the one candidate, a shared-memory
        # all-reduce for inference on CPU, takes 20 s and training does not use it.
        deepspeed.ops.__compatible_ops__ = {}
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        # It calls collectives by names that torch 2.13 warns of, at every step.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.", FutureWarning)

    def build(self, config: ModelConfig, seed: int) -> None:
        """Make the model and hand it to DeepSpeed; collective over all ranks."""
        import deepspeed

        model = build_model(config, self.grid, seed, self.options.engine.recompute)
        self.model = model
        groups, named = self._parameter_groups()
        self._base = self._make_optimizer(groups)
        trainee = Trainee(model)
        if any(group["moe"] for group in groups):
            trainee.add_module("expert_groups", _expert_groups(self.grid.ep.size))
        if self.zero == 3:
            # Routers and experts return what hooks cannot see through: gather a block as one.
            deepspeed.utils.set_z3_leaf_modules(trainee, list({type(b) for b in model.layers}))
        # It prints memory reports.
        with contextlib.redirect_stdout(io.StringIO()):
            self._engine, *_ = deepspeed.initialize(
                model=trainee, optimizer=self._base, config=self._config()
            )
        _watch_collectives()
        self._bind(named)
        if self.options.engine.compile:
            for block in self.model.layers:
                block.compile()

    def _parameter_groups(self) -> tuple[list[dict[str, Any]], list[list[Named]]]:
        """DeepSpeed's parameter groups, and what each parameter is called in the checkpoint."""
        kinds: dict[tuple[bool, str, bool], list[Named]] = {}
        for local, p in self.model.parameters_here():
            update = rule(local.spec, self.options.optimizer)
            team = self.grid.edp if local.expert else self.grid.replicas
            named = Named(p, local, update, exported=self.zero > 0 or team.rank == 0)
            kinds.setdefault((local.expert, update, local.spec.decay), []).append(named)
        groups = [self._group(*kind, named) for kind, named in kinds.items()]
        return groups, list(kinds.values())

    def _group(self, expert: bool, update: str, decay: bool, named: list[Named]) -> dict[str, Any]:
        parameters = [n.parameter for n in named]
        ep = self.grid.ep.size
        # With one expert-parallel rank the experts are parameters like all others.
        moe = expert and ep > 1
        for p in parameters if moe else []:
            p.allreduce, p.group_name = False, f"ep_size_{ep}"  # type: ignore[attr-defined]
        return {
            "params": parameters,
            "expert": expert,
            "moe": moe,
            "name": f"ep_size_{ep}" if moe else f"{update}-{decay}",
            "rule": update,
            "shapes": [n.local.matrix_shape if update == "muon" else () for n in named],
            "weight_decay": self.options.optimizer.weight_decay if decay else 0.0,
        }

    def _make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        c = self.options.optimizer
        if self.zero == 0:
            return WholeOptimizer(groups, c, self.grid.ep, self._gate)
        return self._gate.guard(torch.optim.AdamW(groups, c.lr, c.betas, c.eps, fused=True))

    def _config(self) -> dict[str, Any]:
        options = self.options
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": options.optimizer.clip_grad if self.zero else 0.0,
            "communication_data_type": "fp32",
            "steps_per_print": None,
            "zero_optimization": {
                "stage": self.zero,
                "reduce_bucket_size": options.bucket_bytes // 4,
                # Whole blocks are gathered: keeping small parameters would save nothing.
                "stage3_param_persistence_threshold": 0,
            },
        }
        if options.engine.precision == "bf16":
            config["bf16"] = {"enabled": True}
            # ZeRO 0 can only accumulate in the parameters' dtype.
            config["data_types"] = {"grad_accum_dtype": "fp32" if self.zero else "bf16"}
        return config

    def _bind(self, named: list[list[Named]]) -> None:
        """Find the master weights and give each a fresh optimizer state."""
        if isinstance(self._base, WholeOptimizer):
            self._base.bind()
            self._held = held_state.held_whole(named, self._base)
            return
        if self.zero == 3:
            rank = self.grid.replicas.rank
            self._held = held_state.held_partitions(named, self._engine.optimizer, rank)
        else:
            self._held = held_state.held_flat(named, self._base)
        for h in self._held:
            if not self._base.state[h.master]:
                state = {key: torch.zeros_like(h.master) for key in STATE["adamw"]}
                step = torch.zeros((), device=h.master.device)
                self._base.state[h.master] = {**state, "step": step}

    def step(self, microbatches: Sequence[Batch], hooks: StepHooks = NO_HOOKS) -> StepMetrics:
        """Accumulate the micro-batches, update the parameters and the schedule."""
        o = self.options
        totals = count_totals(microbatches, self.grid, self.device)
        lr = learning_rate(o.schedule, o.optimizer.lr, self.steps_done, o.steps)
        for group in self._base.param_groups:
            group["lr"] = lr
        counted = count_loads(self.model, self._forward, microbatches, self.grid, self.device)
        tally = Tally(totals)
        for i, batch in enumerate(microbatches):
            self._engine.set_gradient_accumulation_boundary(i == len(microbatches) - 1)
            out = self._forward(batch.to(self.device), counted)
            # DeepSpeed divides every sum of gradients, experts' too, by all ranks.
            self._engine.backward(totals.loss(out) * self.grid.replicas.size)
            tally.add(out)
        tally.reduce(self.grid, hooks.leave())
        applied = self._update(hooks, tally)
        if applied:
            with CLOCK.stage("update"):
                self.model.after_update(tally.loads())
        self.steps_done += 1
        self.skipped += not applied
        return tally.metrics(self._norm(), lr, applied)

    def _update(self, hooks: StepHooks, tally: Tally) -> bool:
        """DeepSpeed's step; False if it was refused, or if DeepSpeed itself dropped it for a norm
        that is not finite."""
        if hooks.accept is not None:
            accept, loss = hooks.accept, tally.loss()
            self._gate.close(lambda: accept(loss, self._norm()))
        self.before_update()
        with CLOCK.stage("update"):
            self._engine.step()
        return self._gate.open() and not self._dropped

    @property
    def _dropped(self) -> bool:
        """Whether DeepSpeed gave up the last step because its norm was not finite."""
        return getattr(self._engine.optimizer, "overflow", False)

    def _norm(self) -> float:
        """Rank 0's: DeepSpeed's ranks compute it each for itself."""
        if self._dropped:
            return math.inf
        norm: Any = self._engine.optimizer._global_grad_norm if self.zero else self._base.norm  # type: ignore[attr-defined]
        value = torch.as_tensor(norm, dtype=torch.float64, device=self.device)
        with waiting():
            dist.broadcast(value, 0, group=self.grid.world.group)
            return value.item()

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Summed cross-entropy (nats) and number of targets over all ranks, no update."""
        return evaluate(self._forward, batches, self.grid, self.device)

    def _forward(self, batch: Batch, counted: Loads = ()) -> ModelOutput:
        return ModelOutput(*self._engine(batch, counted))

    def export_state(self) -> list[Shard]:
        """This rank's part of the canonical state; over all ranks every element comes once."""
        shards = held_state.export(self._held, self._base)
        if self.grid.writer:
            shards += buffer_shards(self.model)
        return shards

    def import_state(self, reader: Source) -> None:
        """Load the canonical state; each rank reads only the ranges it holds."""
        self.steps_done, self.skipped = reader.step, reader.meta.get("skipped", 0)
        held_state.load(self._held, self._base, reader, self.steps_done - self.skipped)
        held_state.publish(self._held, self._engine.optimizer, self.zero)
        fill_buffers(reader, self.model)


COLLECTIVES = (
    "all_reduce",
    "reduce",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
    "all_gather",
    "broadcast",
)


def _watch_collectives() -> None:
    """Count the time in DeepSpeed's own collectives as waiting."""
    backend: Any = sys.modules["deepspeed.comm.comm"].cdb
    for name in COLLECTIVES:
        if name not in vars(backend):
            setattr(backend, name, _waited(getattr(backend, name)))


def _waited(collective: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        with waiting():
            return collective(*args, **options)

    return call


def _expert_groups(ep: int) -> nn.Module:
    """A module without parameters that makes DeepSpeed see a mixture of experts.

    Its engine looks for instances of its own layer, and lets each make its process groups; ours
    are the same ranks.
    """
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups

    class ExpertGroups(MoE):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.num_experts = ep

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
            groups._create_expert_and_data_parallel(ep)

    return ExpertGroups()
