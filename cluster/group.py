"""One attempt at running all ranks: started on given seats, polled, told to go, killed."""

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

from .. import UserError
from .backend import Backend, Poll, Seat, SeatLost, SeatSilent, Start
from .config import ClusterConfig
from .environment import passed_on
from .events import Spawned, wire
from .faults import Fault, seat_fault
from .spec import Event, OnEvent, WorkerSpec
from .watch import SILENT_S, RankWatch, overdue

START_TIMEOUT_S = 120.0
"""For a node to start its process."""
KILL_TIMEOUT_S = 6.0
SILENT_KILL_S = 0.5
"""Enough for an answer; but where there were answers before, a worker may need longer to go."""


class StartError(Exception):
    """A rank was lost before all had started."""

    def __init__(self, fault: Fault) -> None:
        """Carry the fault."""
        super().__init__(fault.reason)
        self.fault = fault


@dataclass(eq=False)
class Member:
    """A seat, the rank that it holds, and what is known of it."""

    seat: Seat
    watch: RankWatch
    poll: "Future[Poll] | None" = None
    """The long poll under way; None when there is nothing to wait for."""
    lost: bool = False
    """Its seat is gone."""

    @property
    def rank(self) -> int:
        """Its rank."""
        return self.watch.rank


class WorkerGroup:
    """All ranks of one attempt; `stop` must be called in every case."""

    def __init__(
        self,
        spec: WorkerSpec,
        config: ClusterConfig,
        backend: Backend,
        seats: Sequence[Seat],
        *,
        has_gpus: bool,
        restart: int,
        on_event: OnEvent,
        log_dir: Path | None,
    ) -> None:
        """Nothing is started yet; `restart` counts the attempts before this one."""
        self._spec, self._config, self._backend = spec, config, backend
        self._restart = restart
        self._has_gpus = has_gpus
        self._on_event = on_event
        self._log_dir = log_dir
        self._poll_s = min(5.0, config.heartbeat_timeout_s / 6)
        self._looked = time.monotonic()
        self._members = [
            Member(seat, RankWatch(rank, self._looked))
            for rank, seat in enumerate(in_rank_order(seats))
        ]

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self._members)

    @property
    def finished(self) -> bool:
        """Whether no rank is left to wait for."""
        return all(member.poll is None for member in self._members)

    @property
    def stepping(self) -> bool:
        """Whether every rank has done a step, so that it can save when it is told to go."""
        return all(member.watch.steps for member in self._members)

    @property
    def left(self) -> bool:
        """Whether the ranks saved and went because they were told to."""
        return any(member.watch.left for member in self._members)

    @property
    def step(self) -> int | None:
        """The last step that a rank told of."""
        steps = [m.watch.step for m in self._members if m.watch.step is not None]
        return max(steps, default=None)

    @property
    def last_rank(self) -> int:
        """A rank that still runs; the last one when none does."""
        return next((m.rank for m in self._members if m.poll is not None), self.size - 1)

    def start(self) -> None:
        """Start every worker. Raises UserError (a node cannot start the command), StartError."""
        first = self._members[0]
        port = self._get([first], [first.seat.free_port()])[0]
        rendezvous = {"MASTER_ADDR": first.seat.site.address, "MASTER_PORT": str(port)}
        calls = [m.seat.start(self._start_of(m, rendezvous)) for m in self._members]
        pids = self._get(self._members, calls)
        for member, pid in zip(self._members, pids, strict=True):
            member.watch = RankWatch(member.rank, time.monotonic())
            self._ask(member)
            self._on_event(member.rank, self._spawned(member, pid))

    def poll(self, timeout_s: float) -> list[Fault]:
        """Forward the events that come within `timeout_s`; returns the faults among them."""
        waiting = [member.poll for member in self._members if member.poll is not None]
        if not waiting:
            return []
        wait(waiting, min(timeout_s, self._poll_s), FIRST_COMPLETED)
        self._looked = time.monotonic()
        ready = [m for m in self._members if m.poll is not None and m.poll.done()]
        found = [self._receive(member, member.poll) for member in ready if member.poll]
        return [fault for fault in found if fault is not None]

    def overdue(self) -> Fault | None:
        """The rank that has been silent for too long, else the one that hangs."""
        # Not the present: handling events may take long here (a stopped terminal, say), which is no
        # silence of theirs.
        running = [member.watch for member in self._members if member.poll is not None]
        return overdue(running, self._config, self._looked)

    def terminate(self) -> None:
        """SIGTERM to every worker."""
        for member in self._members:
            if member.poll is not None:
                member.seat.signal(signal.SIGTERM)

    def stop(self) -> list[Seat]:
        """SIGKILL every worker; returns the seats that do not say that it is gone."""
        calls = {m.seat.kill(): m for m in self._members}
        gone = set[Member]()
        waiting = self._take_kills(list(calls), calls, gone, SILENT_KILL_S)
        if waiting:
            cut_off = self._cut_off()
            waiting = [call for call in waiting if self._may_answer(calls[call], cut_off)]
            self._take_kills(waiting, calls, gone, KILL_TIMEOUT_S)
        return [member.seat for member in self._members if member not in gone]

    def _cut_off(self) -> frozenset[str]:
        return self._backend.silent(self._backend.nodes())

    def _take_kills(
        self,
        waiting: "list[Future[bool]]",
        calls: "dict[Future[bool], Member]",
        gone: set[Member],
        timeout_s: float,
    ) -> "list[Future[bool]]":
        """Note which members are gone; returns the calls without an answer."""
        ready, rest = wait(waiting, timeout_s)
        gone.update(calls[call] for call in ready if call.exception() is None and call.result())
        return list(rest)

    def _may_answer(self, member: Member, cut_off: frozenset[str]) -> bool:
        silent = member.watch.silence(self._looked) > SILENT_S
        return not (member.lost or silent or member.seat.site.node in cut_off)

    def _start_of(self, member: Member, rendezvous: dict[str, str]) -> Start:
        log_path = None if self._log_dir is None else self._log_dir / f"rank-{member.rank}.log"
        return Start(
            command=self._spec.command,
            env={
                **passed_on(os.environ),
                **self._config.env,
                **rendezvous,
                **self._rank_env(member),
                "MOELSTROM_RESTART": str(self._restart),
                "MOELSTROM_GENERATION": str(self._restart + 1),
            },
            cwd=str(Path.cwd()),
            log_path=None if log_path is None else str(log_path),
            cpus=self._config.cpus_per_worker,
            hide_gpus=not self._has_gpus,
            attempt=self._restart,
        )

    def _rank_env(self, member: Member) -> dict[str, str]:
        places = [other.seat.site.node for other in self._members]
        node = member.seat.site.node
        node_rank = str(list(dict.fromkeys(places)).index(node))
        return {
            "RANK": str(member.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(places[: member.rank].count(node)),
            "LOCAL_WORLD_SIZE": str(places.count(node)),
            "NODE_RANK": node_rank,
            "GROUP_RANK": node_rank,
        }

    def _spawned(self, member: Member, pid: int) -> Event:
        site = member.seat.site
        return wire(Spawned(time.time(), pid, site.address, site.gpus, self._restart))

    def _ask(self, member: Member) -> None:
        seen = member.watch.seen
        member.poll = member.seat.next_events(self._restart, seen, self._poll_s)

    def _receive(self, member: Member, poll: "Future[Poll]") -> Fault | None:
        try:
            answer = poll.result()
        except SeatSilent:
            # Perhaps only the network: the missing answers count as silence.
            time.sleep(0.1)
            self._ask(member)
            return None
        except SeatLost as error:
            member.poll, member.lost = None, True
            seen = time.time() - (time.monotonic() - member.watch.answered)
            return seat_fault(member.rank, error, seen)
        fault = member.watch.take(answer, time.monotonic())
        if member.watch.running:
            self._ask(member)
        else:
            member.poll = None
        for event in answer.events:
            self._on_event(member.rank, event)
        return fault

    def _get(self, members: Sequence[Member], calls: "Sequence[Future[int]]") -> list[int]:
        """Results in order of `calls`, with the losses and refusals of nodes told apart."""
        self._wait_for(members, calls)
        began, results = time.time(), []
        for member, call in zip(members, calls, strict=True):
            try:
                results.append(call.result())
            except OSError as error:
                raise UserError(
                    f"a node of the cluster cannot start the worker in {Path.cwd()}: {error}; "
                    "run from a folder that all nodes share"
                ) from error
            except (SeatLost, SeatSilent) as error:
                member.lost = True
                raise StartError(seat_fault(member.rank, error, began)) from error
        return results

    def _wait_for(self, members: Sequence[Member], calls: "Sequence[Future[int]]") -> None:
        """Raise StartError for a member whose node answers no more, or that takes too long."""
        began = time.monotonic()
        owner = dict(zip(calls, members, strict=True))
        waiting = set(calls)
        while waiting := wait(waiting, 1.0).not_done:
            lost = self._cut_off()
            for call in waiting:
                member = owner[call]
                late = time.monotonic() - began > START_TIMEOUT_S
                if late or member.seat.site.node in lost:
                    member.lost = True
                    error = RuntimeError("its node died, or does not answer")
                    raise StartError(seat_fault(member.rank, error, time.time()))


def in_rank_order(seats: Sequence[Seat]) -> list[Seat]:
    """Seats by rank: ranks of one node stand together, in order of their GPUs."""
    nodes = list(dict.fromkeys(seat.site.node for seat in seats))
    return sorted(
        seats, key=lambda s: (nodes.index(s.site.node), [(len(gpu), gpu) for gpu in s.site.gpus])
    )
