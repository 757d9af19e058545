"""The training loop: knows data, engine and checkpoints, and nothing of how they work."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from ... import UserError
from ...cluster.events import EventWriter
from ...moe.engines.base import StepHooks, StepMetrics
from ...moe.stages import CLOCK
from ..config import RunConfig
from .build import build
from .channel import Channel
from .describe import Describer, parts
from .health import ADVICE, Health
from .log import Listener, RunLog
from .preempt import Preemption
from .records import DoneRecord, EvalRecord, PreemptedRecord, SkippedRecord, StepRecord
from .rollback import RollBacks
from .saving import SavedState

BeforeStep = Callable[[int, torch.nn.Module], None]
"""Takes the coming step and the model."""


class Training:
    """One rank's run from its start, or from the last complete checkpoint, to its end."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        listeners: list[Listener],
        events: EventWriter,
        preemption: Preemption,
        before_step: BeforeStep | None = None,
    ) -> None:
        """Build everything; collective over all ranks."""
        self.config, self.device = config, device
        self._preemption, self._before_step = preemption, before_step
        log = RunLog(config.folder, listeners) if dist.get_rank() == 0 else None
        self.channel = Channel(events, log, config.cluster.progress_timeout_s)
        CLOCK.listener = lambda name: self.channel.stage(name, None)
        with self.channel.phase("load"):
            self._build()
        CLOCK.listener = lambda name: self.channel.stage(name, self.engine.steps_done + 1)

    def _build(self) -> None:
        config = self.config
        made = build(config, self.device)
        self.loader, self.engine = made.loader, made.engine
        self.health = Health(config.health)
        self._hooks = StepHooks(
            self.health.accept if self.health.asks else None, lambda: self._preemption.wanted
        )
        self.state = SavedState(config, made, self.health, self.channel, self.device)
        self._rollbacks = RollBacks(config, self.channel)
        self.loader.pass_over(self._rollbacks.passed_over)
        self.state.resume(self._rollbacks.below)
        self._describer = Describer(config, made.model, made.grid.world.size, self.device)

    def run(self) -> bool:
        """Train to the last step, save and evaluate: True. False if SIGTERM came first and the
        state is saved. Raises RollBackError, on every rank, when a step asks for it."""
        self.channel.record(self._describer.run(self.engine.steps_done))
        if self._describer.remark:
            self.channel.note(self._describer.remark)
        leave = self._agree(self._preemption.wanted)
        while not leave and self.engine.steps_done < self.config.steps:
            leave = self._step()
            done = self.engine.steps_done
            if leave or _due(self.config.checkpoint.interval, done):
                self.state.save()
            if self._evaluation_due(done) and not leave:
                self._evaluate()
        return self._finish(leave and self.engine.steps_done < self.config.steps)

    def _evaluation_due(self, done: int) -> bool:
        return _due(self.config.evaluation.interval, done) and done < self.config.steps

    def _finish(self, preempted: bool) -> bool:
        done = self.engine.steps_done
        if self.state.saved != done and not (preempted and done == 0):
            self.state.save()
        if not preempted:
            self._evaluate()
        with self.channel.phase("save"):
            self.state.close(ended=not preempted)
        if preempted:
            text = f"step {done}: saved on SIGTERM; the same command goes on from here"
            self.channel.tell(PreemptedRecord(step=done, message=text))
        else:
            self.channel.record(DoneRecord(step=done))
        self.channel.close()
        return not preempted

    def _agree(self, wanted: bool) -> bool:
        """Whether any rank wants it; collective."""
        wish = torch.tensor(int(wanted), device=self.device)
        dist.all_reduce(wish, op=dist.ReduceOp.MAX)
        return bool(wish.item())

    def _step(self) -> bool:
        """One optimizer step; returns whether some rank wants to leave after it."""
        started = time.perf_counter()
        CLOCK.take()
        with CLOCK.stage("data"):
            self.loader.skip()
            first = self.loader.position
            batches = self.loader.next()
        samples = first, self.loader.position
        with CLOCK.stage("compute"):
            if self._before_step:
                self._before_step(self.engine.steps_done + 1, self.engine.model)
            metrics = self.engine.step(batches, self._hooks)
        seconds = time.perf_counter() - started
        self._judge(self.engine.steps_done, metrics, samples)
        self._tell(seconds, samples, metrics)
        return metrics.leave

    def _judge(self, step: int, metrics: StepMetrics, samples: tuple[int, int]) -> None:
        """Act on a step that went wrong; every rank decides the same."""
        fault = self.health.fault(metrics.loss, metrics.grad_norm)
        if fault is None:
            self.health.good(metrics.loss, metrics.grad_norm)
        elif fault.policy == "stop":
            raise UserError(f"step {step}: {fault.text}; {ADVICE}")
        elif fault.policy == "rollback":
            start = self.state.start
            self._rollbacks.go_back(
                step, fault, samples, start, lambda: self.state.close(ended=False)
            )
        else:
            message = self.health.skipped(step, fault)
            self.channel.tell(SkippedRecord(step=step, message=message))

    def _tell(self, seconds: float, samples: tuple[int, int], metrics: StepMetrics) -> None:
        step, stages = self.engine.steps_done, CLOCK.take()
        if self.channel.log is None:
            self.channel.tell(StepRecord(step=step, step_s=seconds, parts=parts(stages)))
            return
        self.channel.tell(self._describer.step(step, seconds, stages, samples, metrics))
        routing = self._describer.routing(step, metrics.expert_load)
        if routing:
            self.channel.record(routing)

    def _evaluate(self) -> None:
        losses = {}
        with self.channel.phase("evaluate"):
            for domain in self.loader.domains:
                batches = list(self.loader.valid(domain, self.config.evaluation.batches))
                total, count = self.engine.evaluate(batches)
                if count:
                    losses[domain] = total / count
                else:
                    self.channel.note(f"{domain}: its held-out part has no targets, so no loss")
        self.channel.record(EvalRecord(step=self.engine.steps_done, loss=losses))


def _due(interval: int, step: int) -> bool:
    return interval > 0 and step % interval == 0
