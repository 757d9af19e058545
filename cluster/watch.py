"""What was last heard of each rank, and which one holds the others up."""

from collections import deque
from collections.abc import Sequence
from statistics import median

from .backend import Poll
from .config import ClusterConfig
from .events import EXIT, Exit, LogLine, Phase, Preempted, Step, read
from .faults import Fault, exit_fault, silence_fault, stall_fault
from .spec import Event

MIN_STEPS = 3
"""Steps before their time says how long the next one may take."""
KEPT_STEPS = 50
LATE = 0.5
"""Share of the limit after which a rank is a suspect once any rank is over it: the culprit and
those that wait for it stop at nearly the same time, in no certain order."""
SILENT_S = 2.0
"""Four beats."""
LONG_STAGES = ("save", "evaluate", "load", "compile")


class RankWatch:
    """Times are of this process's monotonic clock."""

    def __init__(self, rank: int, now: float) -> None:
        """The worker of `rank` has just been started."""
        self.rank = rank
        self.answered = self.progressed = now
        self.running = True
        self.seen = 0
        """Events taken so far."""
        self.step: int | None = None
        self.steps = 0
        self.stage: str | None = None
        self._exiting = False
        self.left = False
        """It saved because it was told to go."""
        self._silent_s = 0.0
        self._phase_limit_s = 0.0
        self._step_time: float | None = None
        self._step_s: deque[float] = deque(maxlen=KEPT_STEPS)

    def take(self, answer: Poll, now: float) -> Fault | None:
        """Note what an answer says; the fault when it ends in a bad exit."""
        self.answered = now
        self._silent_s = answer.silent_s or 0.0
        self.stage = answer.stage
        fault = None
        for event in answer.events:
            fault = self._take_event(event, now) or fault
        self.seen = max(self.seen, answer.first + len(answer.events))
        return fault

    def _take_event(self, event: Event, now: float) -> Fault | None:
        known = read(event)
        if isinstance(known, Exit):
            self.running = False
            return exit_fault(self.rank, known)
        if isinstance(known, LogLine):
            return None
        self.progressed = now
        match known:
            case Phase():
                self._phase_limit_s, self._exiting = known.limit_s, known.name == EXIT
            case Step():
                self._phase_limit_s, self._exiting = 0.0, False
                self._take_step(known)
            case Preempted():
                self.left = True
        return None

    def _take_step(self, step: Step) -> None:
        self.step = step.step
        self.steps += 1
        if self._step_time is not None:
            self._step_s.append(step.time - self._step_time)
        self._step_time = step.time

    def silence(self, now: float) -> float:
        """Seconds since the last sign of life that is known here; an ending process gives none."""
        return now - self.answered if self._exiting else now - self.answered + self._silent_s

    def idle(self, now: float) -> float:
        """Seconds since the last event."""
        return now - self.progressed

    def step_limit(self, config: ClusterConfig) -> tuple[float, str]:
        """How long an ordinary step may take, and the setting that says so."""
        most = (config.progress_timeout_s, "progress_timeout_s")
        if self.steps < MIN_STEPS:
            return most
        by_steps = (config.hang_factor * median(self._step_s), "hang_factor")
        return min(most, max(by_steps, (config.hang_floor_s, "hang_floor_s")))

    def limit(self, config: ClusterConfig) -> tuple[float, str]:
        """How long what it does now may take, and the setting that says so."""
        limits = [self.step_limit(config), (self._phase_limit_s, "phase")]
        if self.stage in LONG_STAGES:
            limits.append((config.progress_timeout_s, "progress_timeout_s"))
        return max(limits)


def overdue(ranks: Sequence[RankWatch], config: ClusterConfig, now: float) -> Fault | None:
    """The rank that has been silent for too long, else the one that makes the others wait."""
    running = [rank for rank in ranks if rank.running]
    silent = max(running, key=lambda rank: rank.silence(now), default=None)
    if silent is not None and silent.silence(now) > config.heartbeat_timeout_s:
        return silence_fault(silent.rank, silent.silence(now), config.heartbeat_timeout_s)
    late = [rank for rank in running if rank.idle(now) > LATE * rank.step_limit(config)[0]]
    if not late:
        return None
    return _hang(min(late, key=lambda rank: _blame(rank, now)), config, now)


def _blame(rank: RankWatch, now: float) -> tuple[bool, bool, int, float]:
    """Smallest for the rank that the others wait for."""
    step = -1 if rank.step is None else rank.step
    return (rank.silence(now) <= SILENT_S, rank.stage == "wait", step, rank.progressed)


def _hang(rank: RankWatch, config: ClusterConfig, now: float) -> Fault | None:
    limit, setting = rank.limit(config)
    idle = rank.idle(now)
    if idle <= limit:
        return None
    return stall_fault(rank.rank, rank.step, idle, limit, setting, rank.stage)
