"""The native engine: data parallel with a ZeRO-1 sharded optimizer, expert parallel."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

from ...batch import Batch
from ...build import build_model
from ...config import ModelConfig
from ...grid import Grid
from ...model import Model
from ...optim.rules import rule
from ...optim.schedule import learning_rate
from ...stages import CLOCK, waiting
from ...state.names import Parameters, buffer_shards, fill_buffers
from ...state.shard import Shard
from ...state.source import Source
from ..base import NO_HOOKS, StepHooks, StepMetrics
from ..metrics import Tally, count_loads, count_totals, evaluate
from ..options import EngineOptions
from .bucket import Bucket
from .optimizer import ShardOptimizer
from .shares import fill_buckets

Kind = tuple[bool, str, bool]
"""(expert, optimizer rule, weight decay): what the parameters of one bucket share."""


class NativeEngine:
    """Sums gradients over the data-parallel ranks (experts: over the ranks that hold copies)
    while the backward pass still runs, updates fp32 master weights, publishes the result."""

    model: Model
    before_update: Callable[[], None]

    def __init__(self, options: EngineOptions, grid: Grid) -> None:
        self.options, self.grid = options, grid
        self.steps_done = self.skipped = 0
        self.before_update = lambda: None
        self._last_microbatch = False

    def setup(self, device: torch.device) -> None:
        """Remember the device; the process groups exist already."""
        self.device = device

    def build(self, config: ModelConfig, seed: int) -> None:
        """Make the model, move it to the device and dtype, lay out buckets and optimizers."""
        model = build_model(config, self.grid, seed, self.options.engine.recompute)
        dtype = torch.bfloat16 if self.options.engine.precision == "bf16" else torch.float32
        self.model = model.to(device=self.device, dtype=dtype)
        self.buckets = self._make_buckets()
        self._bucket = {p: b for b in self.buckets for p in b.parameters}
        for parameter in self._bucket:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)
        self.optimizers = [ShardOptimizer(b, self.options.optimizer) for b in self.buckets]
        if self.options.engine.compile:
            for block in self.model.layers:
                block.compile()

    def _make_buckets(self) -> list[Bucket]:
        found: dict[Kind, Parameters] = {}
        # Gradients arrive from the last layer to the first.
        for local, p in reversed(self.model.parameters_here()):
            kind = local.expert, rule(local.spec, self.options.optimizer), local.spec.decay
            found.setdefault(kind, []).append((local, p))
        buckets = []
        for (expert, update, _), held in found.items():
            team = self.grid.edp if expert else self.grid.replicas
            for part in fill_buckets([local for local, _ in held], self.options.bucket_bytes):
                chosen = [held[i] for i in part]
                buckets.append(Bucket(chosen, team, update, self.options.layout.zero > 0))
        return buckets

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        bucket = self._bucket[parameter]
        bucket.accumulate(parameter)
        if self._last_microbatch:
            bucket.arrive()

    def step(self, microbatches: Sequence[Batch], hooks: StepHooks = NO_HOOKS) -> StepMetrics:
        """Accumulate the micro-batches, update the parameters and the schedule."""
        totals = count_totals(microbatches, self.grid, self.device)
        counted = count_loads(self.model, self.model, microbatches, self.grid, self.device)
        tally = Tally(totals)
        for i, batch in enumerate(microbatches):
            self._last_microbatch = i == len(microbatches) - 1
            out = self.model(batch.to(self.device), counted)
            totals.loss(out).backward()
            tally.add(out)
        norm = self._reduce_gradients()
        tally.reduce(self.grid, hooks.leave())
        lr = learning_rate(
            self.options.schedule, self.options.optimizer.lr, self.steps_done, self.options.steps
        )
        applied = hooks.accept is None or hooks.accept(tally.loss(), norm.item())
        if applied:
            self._update(norm, lr)
            with CLOCK.stage("update"):
                self.model.after_update(tally.loads())
        else:
            self._refuse()
        self.steps_done += 1
        return tally.metrics(norm, lr, applied)

    def _reduce_gradients(self) -> torch.Tensor:
        """End all reductions; returns the global gradient norm, each parameter counted once."""
        square = torch.zeros((), dtype=torch.float64, device=self.device)
        for bucket in self.buckets:
            bucket.wait()
            square += bucket.squared_norm()
        with waiting():
            dist.all_reduce(square, group=self.grid.world.group)
        return square.sqrt()

    @torch.no_grad()
    def _update(self, norm: torch.Tensor, lr: float) -> None:
        self.before_update()
        limit = self.options.optimizer.clip_grad
        scale = (limit / (norm + 1e-6)).clamp(max=1.0).float() if limit else None
        with CLOCK.stage("update"):
            for optimizer in self.optimizers:
                if scale is not None:
                    optimizer.bucket.shard_gradient.mul_(scale)
                optimizer.step(lr)
                optimizer.bucket.publish()

    def _refuse(self) -> None:
        for bucket in self.buckets:
            bucket.discard()
        self.skipped += 1

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Summed cross-entropy (nats) and number of targets over all ranks, no update."""
        return evaluate(self.model, batches, self.grid, self.device)

    def export_state(self) -> list[Shard]:
        """This rank's part of the canonical state; over all ranks every element comes once."""
        shards = [shard for o in self.optimizers for shard in o.export()]
        if self.grid.writer:
            shards += buffer_shards(self.model)
        return shards

    def import_state(self, reader: Source) -> None:
        """Load the canonical state; each rank reads only the ranges it holds."""
        self.steps_done, self.skipped = reader.step, reader.meta.get("skipped", 0)
        for optimizer in self.optimizers:
            optimizer.load(reader, self.steps_done - self.skipped)
        fill_buffers(reader, self.model)
