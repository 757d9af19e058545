"""A training run under a scenario's faults, from its start to its report."""

from pathlib import Path

from rich.console import Console

from ...cluster.spec import Event
from ..config import RunConfig
from ..train.start import train_under_ray
from .actions import check_fillable
from .control import VARIABLE
from .injector import Injector
from .recovery import Recorder, Report, judge
from .scenario import Scenario


def train_under_faults(
    run: RunConfig, resolved: Path, scenario: Scenario, console: Console
) -> Report:
    """Train the resolved config under Ray while the faults come. Raises UserError for a scenario
    that would harm more than the run."""
    control = (run.folder / "chaos" / "control").resolve()
    checkpoints = Path(run.placed_checkpoint.path)
    if any(fault.kind == "disk_full" for fault in scenario.faults):
        check_fillable(checkpoints)
    recorder = Recorder()

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    with Injector(scenario, control, checkpoints, tell) as injector:

        def watch(rank: int | None, event: Event) -> None:
            recorder.on_event(rank, event)
            injector.on_event(rank, event)

        outcome = train_under_ray(_watched(run, control), resolved, console, watch)
    return judge(
        run.folder,
        recorder,
        injector.done,
        faults=len(scenario.faults),
        exit_code=outcome.exit_code,
        message=injector.problem or outcome.message,
    )


def _watched(run: RunConfig, control: Path) -> RunConfig:
    """The run whose workers look for faults in the control folder."""
    env = {**run.cluster.env, VARIABLE: str(control)}
    cluster = run.cluster.model_copy(update={"env": env})
    return run.model_copy(update={"cluster": cluster})
