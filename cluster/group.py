"""One attempt at running all ranks: placed, started, polled, killed.

Import this only within a `ray_session`.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .. import UserError
from .actor import Poll, Site, Start, WorkerActor
from .config import ClusterConfig
from .faults import Fault, actor_fault, exit_fault, silence_fault, stall_fault
from .placement import check_fits, cluster_text, gpus_per_worker, live_nodes
from .spec import Event, OnEvent, WorkerSpec

KILL_TIMEOUT_S = 6.0
START_TIMEOUT_S = 120.0
"""For Ray to start its own processes on the nodes."""
BUSY_NOTICE_S = 5.0


class StartError(Exception):
    """A rank was lost before all had started."""

    def __init__(self, fault: Fault) -> None:
        """Carry the fault."""
        super().__init__(fault.reason)
        self.fault = fault


@dataclass
class Member:
    """An actor, the rank it holds, and what was last heard of it."""

    actor: Any
    site: Site
    rank: int = -1
    poll: Any = None
    """The long poll under way; None when there is nothing to wait for."""
    answered: float = field(default_factory=time.monotonic)
    progressed: float = field(default_factory=time.monotonic)
    silent_s: float = 0.0
    """Silence of the worker at the last answer."""
    step: int | None = None

    def take(self, answer: Poll) -> Fault | None:
        """Note what an answer says; the fault when it ends in a bad exit."""
        self.answered = time.monotonic()
        self.silent_s = answer.silent_s or 0.0
        for event in answer.events:
            if event["kind"] == "exit":
                self.poll = None
                return exit_fault(self.rank, event)
            if event["kind"] != "log":
                self.progressed = self.answered
            if event["kind"] == "step":
                self.step = event.get("step")
        return None


class WorkerGroup:
    """All ranks of one attempt; `stop` must be called in every case."""

    def __init__(
        self,
        spec: WorkerSpec,
        config: ClusterConfig,
        *,
        restart: int,
        on_event: OnEvent,
        log_dir: Path | None,
    ) -> None:
        """Nothing is started yet; `restart` counts the attempts before this one."""
        self._spec, self._config, self._restart = spec, config, restart
        self._on_event = on_event
        self._log_dir = log_dir
        self._poll_s = min(5.0, config.heartbeat_timeout_s / 6)
        self._gpus = 0
        self._placement: PlacementGroup | None = None
        self._actors: list[Any] = []
        self._members: list[Member] = []
        self._looked = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether no rank is left to wait for."""
        return all(member.poll is None for member in self._members)

    def start(self) -> None:
        """Place the actors and start every worker.

        Raises UserError (no room, a node cannot start the command) and StartError.
        """
        self._make_actors(self._place())
        sites = self._get([actor.site.remote() for actor in self._actors])
        members = [Member(a, s) for a, s in zip(self._actors, sites, strict=True)]
        self._members = in_rank_order(members)
        self._start_workers()

    def poll(self, timeout_s: float) -> list[Fault]:
        """Forward the events that come within `timeout_s`; returns the faults among them."""
        waiting = {member.poll: member for member in self._members if member.poll is not None}
        if not waiting:
            return []
        ready, rest = ray.wait(list(waiting), timeout=min(timeout_s, self._poll_s))
        more = ray.wait(rest, num_returns=len(rest), timeout=0)[0] if ready and rest else []
        self._looked = time.monotonic()
        found = [self._receive(waiting[reference]) for reference in [*ready, *more]]
        return [fault for fault in found if fault is not None]

    def overdue(self) -> Fault | None:
        """The rank that has been silent for too long, else the one that is stalled."""
        # Not the present: handling events may take long here (a stopped terminal, say), which is no
        # silence of theirs.
        now = self._looked
        running = [member for member in self._members if member.poll is not None]
        for member in running:
            silent, limit = (
                now - member.answered + member.silent_s,
                self._config.heartbeat_timeout_s,
            )
            if silent > limit:
                return silence_fault(member.rank, silent, limit)
        stalled = min(running, key=lambda member: member.progressed, default=None)
        limit = self._config.progress_timeout_s
        if stalled is None or now - stalled.progressed <= limit:
            return None
        return stall_fault(stalled.rank, stalled.step, now - stalled.progressed, limit)

    def stop(self) -> None:
        """SIGKILL every worker, end the actors, give the resources back."""
        kills = [actor.kill.remote() for actor in self._actors]
        if kills:
            ray.wait(kills, num_returns=len(kills), timeout=KILL_TIMEOUT_S)
        for actor in self._actors:
            with suppress(RayError, ValueError):
                ray.kill(actor)
        if self._placement is not None:
            remove_placement_group(self._placement)
        self._actors, self._members, self._placement = [], [], None

    def _place(self) -> PlacementGroup:
        nodes = live_nodes()
        if self._restart == 0:
            # After a fault a lost node may yet come back, so a restart waits instead.
            check_fits(nodes, self._spec.world_size, self._config)
        self._gpus = gpus_per_worker(nodes, self._config)
        bundle: dict[str, float] = {"CPU": self._config.cpus_per_worker}
        if self._gpus:
            bundle["GPU"] = self._gpus
        bundles = [dict(bundle) for _ in range(self._spec.world_size)]
        self._placement = placement_group(bundles, strategy=self._config.strategy)
        self._wait_for_room(self._placement)
        return self._placement

    def _wait_for_room(self, placement: PlacementGroup) -> None:
        began, told = time.monotonic(), False
        while not placement.wait(timeout_seconds=1):
            waited = time.monotonic() - began
            if waited > self._config.progress_timeout_s:
                raise UserError(
                    f"no room for {self._spec.world_size} workers after {waited:.0f} s "
                    f"(cluster.progress_timeout_s): {cluster_text(live_nodes())}; "
                    "free the cluster, or bring lost nodes back"
                )
            if waited > BUSY_NOTICE_S and not told:
                told = True
                text = f"waiting for room in the cluster: {cluster_text(live_nodes())}"
                self._on_event(None, {"kind": "waiting", "time": time.time(), "message": text})

    def _make_actors(self, placement: PlacementGroup) -> None:
        actor_class = ray.remote(WorkerActor)
        for bundle in range(self._spec.world_size):
            strategy = PlacementGroupSchedulingStrategy(
                placement, placement_group_bundle_index=bundle
            )
            options = actor_class.options(
                num_cpus=self._config.cpus_per_worker,
                num_gpus=self._gpus,
                scheduling_strategy=strategy,
            )
            self._actors.append(options.remote())

    def _start_workers(self) -> None:
        first = self._members[0]
        port = self._get([first.actor.free_port.remote()])[0]
        rendezvous = {"MASTER_ADDR": first.site.address, "MASTER_PORT": str(port)}
        starts = [self._start_of(member, rendezvous) for member in self._members]
        calls = [m.actor.start.remote(s) for m, s in zip(self._members, starts, strict=True)]
        for member, pid in zip(self._members, self._get(calls), strict=True):
            member.answered = member.progressed = time.monotonic()
            member.poll = member.actor.next_events.remote(self._poll_s)
            self._on_event(member.rank, self._spawned(member, pid))

    def _start_of(self, member: Member, rendezvous: dict[str, str]) -> Start:
        log_path = None if self._log_dir is None else self._log_dir / f"rank-{member.rank}.log"
        return Start(
            command=self._spec.command,
            env={
                **self._config.env,
                **self._spec.env,
                **rendezvous,
                **self._rank_env(member),
                "MOELSTROM_RESTART": str(self._restart),
            },
            cwd=str(Path.cwd()),
            log_path=None if log_path is None else str(log_path),
            cpus=self._config.cpus_per_worker,
            hide_gpus=self._gpus == 0,
        )

    def _rank_env(self, member: Member) -> dict[str, str]:
        nodes = list(dict.fromkeys(other.site.node for other in self._members))
        peers = [other.rank for other in self._members if other.site.node == member.site.node]
        node_rank = str(nodes.index(member.site.node))
        return {
            "RANK": str(member.rank),
            "WORLD_SIZE": str(len(self._members)),
            "LOCAL_RANK": str(peers.index(member.rank)),
            "LOCAL_WORLD_SIZE": str(len(peers)),
            "NODE_RANK": node_rank,
            "GROUP_RANK": node_rank,
        }

    def _spawned(self, member: Member, pid: int) -> Event:
        return {
            "kind": "spawned",
            "time": time.time(),
            "pid": pid,
            "node": member.site.address,
            "gpus": list(member.site.gpus),
            "restart": self._restart,
        }

    def _receive(self, member: Member) -> Fault | None:
        try:
            answer: Poll = ray.get(member.poll)
        except ActorUnavailableError:
            # Perhaps only the network: the missing answers count as silence.
            time.sleep(0.1)
            member.poll = member.actor.next_events.remote(self._poll_s)
            return None
        except RayError as error:
            member.poll = None
            return actor_fault(member.rank, error, self._last_seen(member))
        fault = member.take(answer)
        if member.poll is not None:
            member.poll = member.actor.next_events.remote(self._poll_s)
        for event in answer.events:
            self._on_event(member.rank, event)
        return fault

    def _last_seen(self, member: Member) -> float:
        return time.time() - (time.monotonic() - member.answered)

    def _get(self, calls: Sequence[Any]) -> list[Any]:
        """Results in order of `calls`, with the losses and refusals of nodes told apart."""
        began, results = time.time(), []
        limit = time.monotonic() + START_TIMEOUT_S
        for index, call in enumerate(calls):
            try:
                results.append(ray.get(call, timeout=max(0.0, limit - time.monotonic())))
            except GetTimeoutError as error:  # An OSError too, so it stands first.
                raise StartError(actor_fault(index, error, began)) from error
            except OSError as error:
                raise UserError(
                    f"a node of the cluster cannot start the worker in {Path.cwd()}: "
                    f"{str(error).strip().splitlines()[-1]}; run from a folder that all nodes share"
                ) from error
            except RayError as error:
                raise StartError(actor_fault(index, error, began)) from error
        return results


def in_rank_order(members: Sequence[Member]) -> list[Member]:
    """Number the members: ranks of one node stand together, in order of their GPUs."""
    nodes = list(dict.fromkeys(member.site.node for member in members))
    ordered = sorted(
        members, key=lambda m: (nodes.index(m.site.node), [(len(gpu), gpu) for gpu in m.site.gpus])
    )
    for rank, member in enumerate(ordered):
        member.rank = rank
    return ordered
