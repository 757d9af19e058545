"""The optimizer of one bucket's shard, with its state in flat tensors that have names."""

import torch
from torch import nn

from ...config import OptimizerConfig
from ...optim.muon import Muon
from ...optim.rules import STATE
from ...state.names import has_optimizer
from ...state.shard import Shard
from ...state.source import Source
from .bucket import Bucket


class ShardOptimizer:
    """AdamW on the flat shard, or Muon on the whole matrices in it."""

    def __init__(self, bucket: Bucket, config: OptimizerConfig) -> None:
        self.bucket = bucket
        self.state = {key: torch.zeros_like(bucket.master) for key in STATE[bucket.rule]}
        decay = config.weight_decay if bucket.decay else 0.0
        make = self._muon if bucket.rule == "muon" else self._adamw
        self.optimizer = make(config, decay)

    def _adamw(self, config: OptimizerConfig, decay: float) -> torch.optim.Optimizer:
        master = _view(self.bucket.master, self.bucket.shard_gradient)
        optimizer = torch.optim.AdamW(
            [master],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            weight_decay=decay,
            fused=True,
        )
        step = torch.zeros((), device=master.device)
        optimizer.state[master] = {"step": step, **self.state}
        return optimizer

    def _muon(self, config: OptimizerConfig, decay: float) -> torch.optim.Optimizer:
        stacks, states = [], []
        for piece, at in self.bucket.owned():
            shape = (-1, *piece.local.matrix_shape)
            run = slice(at, at + piece.numel)
            gradient = self.bucket.shard_gradient[run].view(shape)
            stacks.append(_view(self.bucket.master[run].view(shape), gradient))
            states.append({"momentum": self.state["momentum"][run].view(shape)})
        # torch refuses an optimizer without parameters; a rank may own no matrix.
        stacks = stacks or [_view(self.bucket.master[:0].view(0, 1, 1), None)]
        optimizer = Muon(stacks, config.lr, config.momentum, config.ns_steps, decay)
        for stack, state in zip(stacks, states, strict=False):
            optimizer.state[stack] = state
        return optimizer

    def step(self, lr: float) -> None:
        """Update the master shard from the bucket's reduced gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()

    def export(self) -> list[Shard]:
        """Master weights and optimizer state under canonical names."""
        shards = self.bucket.export("model", self.bucket.master)
        for key, values in self.state.items():
            shards += self.bucket.export(f"{self.bucket.rule}/{key}", values)
        return shards

    def load(self, reader: Source, updates: int) -> None:
        """Read what `export` names and publish the weights; collective over the team. `updates` is
        the count that AdamW's bias correction needs."""
        self.bucket.load(reader, "model", self.bucket.master)
        for key, values in self.state.items() if has_optimizer(reader) else ():
            self.bucket.load(reader, f"{self.bucket.rule}/{key}", values)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(updates)
        self.bucket.publish()


def _view(values: torch.Tensor, gradient: torch.Tensor | None) -> nn.Parameter:
    parameter = nn.Parameter(values, requires_grad=False)
    parameter.grad = gradient
    return parameter
