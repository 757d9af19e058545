"""Going back to a checkpoint after a step that went wrong, and what the run keeps of that."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ... import UserError
from ...moe.checkpoint.folder import move_aside, step_folder
from ..config import RunConfig
from .channel import Channel
from .health import ADVICE, StepFault
from .records import RolledBackRecord

HEALTH_NAME = "health.jsonl"
"""In the run's folder: every roll-back, one JSON object a line."""


class RollBackError(Exception):
    """The run must start again from the checkpoint before this step; all ranks raise it."""


@dataclass(frozen=True)
class RollBack:
    """One line of `health.jsonl`: the bad `step`, and its `samples` [first, end), which the run
    passes over from then on. `behind`: the step of a checkpoint that was set aside."""

    step: int
    samples: tuple[int, int]
    behind: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for what is no range."""
        first, end = self.samples
        if not 0 <= first <= end:
            raise ValueError(f"samples {first} to {end}")


class RollBacks:
    """The roll-backs of a run so far, and the next one."""

    def __init__(self, config: RunConfig, channel: Channel) -> None:
        """Read what earlier starts have noted; collective."""
        self._config, self._channel = config, channel
        self._done: list[RollBack] = shared(rollbacks(config.folder) if channel.log else None)

    @property
    def passed_over(self) -> list[tuple[int, int]]:
        """Samples that no step uses any more."""
        return [back.samples for back in self._done]

    @property
    def below(self) -> int | None:
        """The step of a checkpoint that spoils what follows: only one before it may be loaded."""
        return self._done[-1].behind if self._done else None

    def go_back(
        self,
        step: int,
        fault: StepFault,
        samples: tuple[int, int],
        start: int,
        close: Callable[[], None],
    ) -> None:
        """Note a bad step, and raise RollBackError on every rank; UserError after too many.

        `start` is the step that this start of the run went on from, -1 for none; `close` waits for
        the last save: nothing after it is kept, no save has been started since the fault.
        """
        limit = self._config.health.max_rollbacks
        if len(self._done) >= limit:
            raise UserError(
                f"step {step}: {fault.text}, after {limit} roll-backs (health.max_rollbacks); "
                f"{ADVICE}"
            )
        close()
        where = "the last checkpoint"
        if self._channel.log:
            self._channel.log.check()
            where = self._note(step, fault, samples, start)
        text = (
            f"step {step}: {fault.text}: back to {where}, and past samples {samples[0]} to "
            f"{samples[1] - 1}"
        )
        self._channel.tell(RolledBackRecord(step=step, message=text))
        self._channel.close()
        # A rank that leaves ends the others: not before the note is on disk.
        dist.barrier()
        raise RollBackError(text)

    def _note(self, step: int, fault: StepFault, samples: tuple[int, int], start: int) -> str:
        """Write it down, set a bad checkpoint aside; says where the run goes back to."""
        behind = start if self._start_is_bad(step, start) else None
        record_rollback(self._config.folder, RollBack(step, samples, behind), fault.text)
        if behind is None:
            return "the last checkpoint"
        folder = step_folder(Path(self._config.placed_checkpoint.path), behind)
        try:
            return f"the checkpoint before step {behind}, now {move_aside(folder)}"
        except OSError as error:
            return f"the last checkpoint ({folder} should be set aside, but {error.strerror})"

    def _start_is_bad(self, step: int, start: int) -> bool:
        """Whether the checkpoint itself is what went wrong: the step after it did, twice, on
        different samples."""
        last = self._done[-1] if self._done else None
        return start == step - 1 >= 0 and last is not None and last.step == step


def shared(value: Any) -> Any:
    """Rank 0's value, everywhere; collective."""
    box = [value]
    dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
    return box[0]


def record_rollback(folder: Path, back: RollBack, reason: str) -> None:
    """Note a roll-back durably."""
    line = {"kind": "rollback", "time": time.time(), "reason": reason, **asdict(back)}
    with (folder / HEALTH_NAME).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def rollbacks(folder: Path) -> list[RollBack]:
    """Every roll-back so far. Raises UserError for a damaged file."""
    path = folder / HEALTH_NAME
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill can cut the last line short.
        return [_parse(json.loads(line)) for line in lines if line.endswith("\n")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); each line must be a roll-back as the run wrote it; "
            "restore the file, or move it away to train on every sample"
        ) from None


def passed_over(folder: Path) -> list[tuple[int, int]]:
    """The samples [first, end) of every roll-back so far."""
    return [back.samples for back in rollbacks(folder)]


def _parse(line: dict[str, Any]) -> RollBack:
    first, end = (int(sample) for sample in line["samples"])
    return RollBack(int(line["step"]), (first, end), line.get("behind"))
