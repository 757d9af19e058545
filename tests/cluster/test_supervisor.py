"""Real programs, real faults: every test ends with a check that no process is left."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from moelstrom import UserError

Run = Callable[..., Any]
Event = dict[str, Any]


class Attack:
    """Calls `act(pid)` once, for a rank's process of the first attempt, at its third step."""

    def __init__(self, rank: int, act: Callable[[int], None]) -> None:
        self.rank, self.act = rank, act
        self.pid = 0
        self.done = False

    def __call__(self, rank: int | None, event: Event) -> None:
        if rank != self.rank or self.done:
            return
        if event["kind"] == "spawned":
            self.pid = event["pid"]
        if event["kind"] == "step" and event["step"] == 2:
            self.done = True
            self.act(self.pid)


STEPS = "steps(10_000 if restart == 0 else 3)"


def test_success(run: Run, tmp_path: Path) -> None:
    ran = run(
        "steps(3); print('hello'); print(os.environ['COLOUR'], os.getcwd())", env={"COLOUR": "x"}
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 0)
    assert [event["step"] for event in ran.of_kind("step")].count(2) == 2
    assert {event["line"] for event in ran.of_kind("log")} == {"hello", f"x {Path.cwd()}"}
    assert [event["phase"] for event in ran.outcome.timeline] == ["started", "ended"]
    assert (tmp_path / "log" / "rank-1.log").read_text().startswith("hello\n")


def test_the_workers_environment(run: Run) -> None:
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK OMP_NUM_THREADS"
    body = f"writer.emit('env', values=[os.environ[n] for n in {names.split()}])"
    ran = run(body, env={"OMP_NUM_THREADS": "3"})
    values = sorted(event["values"] for event in ran.of_kind("env"))
    assert values == [["0", "0", "2", "2", "0", "0", "3"], ["1", "1", "2", "2", "0", "0", "3"]]


def test_a_crash_is_restarted(run: Run, tmp_path: Path) -> None:
    count = tmp_path / "count"
    ran = run(
        f"""
        steps(2)
        if rank == 1:
            path = Path({str(count)!r})
            done = int(path.read_text()) if path.exists() else 0
            path.write_text(str(done + 1))
            if done < 2:
                raise ValueError(f"crash {{done}}")
        """,
        max_restarts=3,
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 2)
    faults = [event for event in ran.outcome.timeline if event["phase"] == "fault"]
    assert [event["reason"] for event in faults] == [
        f"rank 1 exited with code 1: ValueError: crash {i}" for i in range(2)
    ]


def test_a_killed_rank(run: Run, tmp_path: Path) -> None:
    ran = run(STEPS, on_event=Attack(1, lambda pid: os.kill(pid, signal.SIGKILL)))
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 1)
    order = ["started", "fault", "detected", "killed", "regrouped", "resumed", "ended"]
    assert [event["phase"] for event in ran.outcome.timeline] == order
    times = [event["time"] for event in ran.outcome.timeline]
    assert times == sorted(times)
    phases = ran.phases()
    assert phases["fault"]["reason"] == "rank 1 was killed by SIGKILL"
    assert phases["detected"]["since_fault_s"] < 2
    lines = (tmp_path / "log" / "supervisor.jsonl").read_text().splitlines()
    assert [json.loads(line)["phase"] for line in lines] == order


def test_a_stopped_rank_is_noticed_within_ten_seconds(run: Run) -> None:
    """With the defaults."""
    ran = run(STEPS, on_event=Attack(0, lambda pid: os.kill(pid, signal.SIGSTOP)))
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 1)
    phases = ran.phases()
    assert "rank 0 gave no sign of life" in phases["fault"]["reason"]
    assert 5 <= phases["detected"]["since_fault_s"] < 10


def test_a_hung_rank_is_noticed(run: Run) -> None:
    ran = run(
        "steps(100 if rank == 0 and restart == 0 else 2); time.sleep(0 if restart else 600)",
        progress_timeout_s=6,
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 1)
    assert "rank 1 made no progress" in ran.phases()["fault"]["reason"]
    assert "after step 1" in ran.phases()["fault"]["reason"]


def test_a_killed_actor(run: Run) -> None:
    ran = run(STEPS, on_event=Attack(1, lambda pid: psutil.Process(pid).parent().kill()))
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 1)
    assert "the seat of rank 1 was lost: The actor died" in ran.phases()["fault"]["reason"]


@pytest.mark.slow
def test_a_stopped_actor(run: Run) -> None:
    ran = run(
        STEPS,
        on_event=Attack(1, lambda pid: psutil.Process(pid).parent().suspend()),
        heartbeat_timeout_s=3,
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 1)
    assert "rank 1 gave no sign of life" in ran.phases()["fault"]["reason"]


def test_a_users_mistake_is_not_restarted(run: Run) -> None:
    ran = run(
        """
        if rank == 0:
            writer.emit("error", message="data.path: no such folder")
            print("a warning", file=sys.stderr)
            sys.exit(2)
        time.sleep(600)
        """
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (2, 0)
    assert ran.outcome.message == "data.path: no such folder"


def test_the_restarts_run_out(run: Run) -> None:
    ran = run("steps(1); sys.exit(7 if rank == 0 else 0)")
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (7, 1)
    message = "rank 0 exited with code 7; restarts used: 1 in 3600 s (cluster.max_restarts)"
    assert ran.outcome.message == message


def test_the_killed_rank_is_named_not_its_peer(run: Run) -> None:
    """Rank 0 sees rank 1 go and exits 1 before the signal's effect is reported."""
    ran = run(
        """
        if rank == 0:
            sys.exit(1)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        max_restarts=0,
    )
    assert ran.outcome.message.startswith("rank 1 was killed by SIGKILL")


def test_gloo_all_reduce(run: Run) -> None:
    ran = run(
        """
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        value = torch.tensor([rank + 1.0])
        dist.all_reduce(value)
        writer.emit("sum", value=value.item())
        dist.destroy_process_group()
        """
    )
    assert ran.outcome.exit_code == 0
    assert [event["value"] for event in ran.of_kind("sum")] == [3.0, 3.0]


def test_workers_inherit_token_authentication(run: Run) -> None:
    ran = run("writer.emit('mode', value=os.environ['RAY_AUTH_MODE'])")
    assert [event["value"] for event in ran.of_kind("mode")] == ["token", "token"]


def test_a_group_that_can_never_fit(run: Run) -> None:
    with pytest.raises(UserError, match=r"2 workers of 1000 CPU .*cluster\.cpus_per_worker"):
        run("", cpus_per_worker=1000)


def test_an_exception_in_the_callback_kills_the_group(run: Run) -> None:
    pids: list[int] = []

    def fail(rank: int | None, event: Event) -> None:
        if event["kind"] == "spawned":
            pids.append(event["pid"])
        if event["kind"] == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("steps(10_000)", on_event=fail)
    assert len(pids) == 2
    running = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    assert psutil.wait_procs(running, timeout=10)[1] == []


def test_a_deadlocked_rank_is_named_within_ten_seconds(run: Run) -> None:
    """With the defaults; its peer, which is rank 0, waits in an all-reduce."""
    ran = run(
        """
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo")
        for step in range(23 if restart == 0 else 3):
            writer.stage("compute", step)
            time.sleep(600 if rank == 1 and step == 20 else 0.05)
            writer.stage("wait", step)
            dist.all_reduce(torch.ones(1))
            writer.emit("step", step=step)
        dist.destroy_process_group()
        """
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 1)
    phases = ran.phases()
    assert phases["fault"]["reason"].startswith("rank 1 made no progress for")
    assert "after step 19, in compute (cluster.hang_floor_s: 5 s)" in phases["fault"]["reason"]
    assert phases["detected"]["since_fault_s"] < 10


def test_an_announced_phase_is_no_hang(run: Run) -> None:
    ran = run(
        """
        steps(5)
        writer.emit("phase", name="evaluate", limit_s=30)
        time.sleep(2.5)
        steps(2)
        """,
        hang_floor_s=1,
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 0)


def test_a_roll_back_does_not_count(run: Run, tmp_path: Path) -> None:
    ran = run(
        """
        steps(2)
        if restart < 2:
            if rank == 0:
                sys.exit(3)
            time.sleep(0.1)
            sys.exit(1)
        """,
        max_restarts=0,
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 2)
    assert ran.phases()["fault"]["reason"] == "rank 0 asks for a roll-back"


def test_restarts_are_counted_within_the_window(run: Run) -> None:
    body = "steps(1); time.sleep(1.2); sys.exit(restart < 3)"
    assert run(body, restart_window_s=1).outcome.exit_code == 0
    outcome = run(body, restart_window_s=0).outcome
    assert (outcome.exit_code, outcome.restarts) == (1, 1)
    assert outcome.message.endswith("restarts used: 1 (cluster.max_restarts)")


def test_a_restart_keeps_its_places(run: Run) -> None:
    """The actors stay, so that nobody else takes the room and no Ray process has to start."""
    parents: list[int] = []

    def note(rank: int | None, event: Event) -> None:
        if event["kind"] == "spawned":
            parents.append(psutil.Process(event["pid"]).ppid())

    assert run("steps(2); sys.exit(restart == 0)", on_event=note).outcome.exit_code == 0
    assert len(parents) == 4
    assert set(parents[:2]) == set(parents[2:])


def test_a_straggler_is_named(run: Run) -> None:
    ran = run(
        """
        for step in range(45):
            own = 0.04 if rank == 1 else 0.01
            parts = {"data": 0.001, "compute": own, "wait": 0.05 - own}
            writer.emit("step", step=step, parts=parts)
            time.sleep(0.01)
        """
    )
    found = [event for event in ran.outcome.timeline if event["phase"] == "straggler"]
    assert [(event["rank"], event["part"]) for event in found] == [(1, "compute")]
    assert found[0]["node"] == ran.of_kind("spawned")[1]["node"]
    assert 3 < found[0]["factor"] < 5


def test_a_slow_end_is_no_stopped_rank(run: Run) -> None:
    """An ending interpreter runs no threads, so no beats."""
    ran = run(
        """
        class Slow:
            def __del__(self, sleep=time.sleep):
                sleep(4)

        slow = Slow()
        steps(3)
        """,
        heartbeat_timeout_s=2,
    )
    assert (ran.outcome.exit_code, ran.outcome.restarts) == (0, 0)
