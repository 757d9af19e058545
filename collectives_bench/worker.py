"""The collectives benchmark on one rank of an initialised process group."""

from dataclasses import asdict
from typing import Any

import torch

from .. import UserError
from .config import CollectivesConfig
from .loads import read_load
from .meet import Meeting
from .origin import describe
from .plan import SweepPlan, Tables
from .sweep import Emit, Sweep


def run(config: CollectivesConfig, device: torch.device, emit: Emit) -> None:
    """Measure everything in `config`; collective over the default process group.

    `emit(kind, **fields)` gets, on rank 0: `header` (report) first, then a `measurement` or `skip`
    (value) as each is found; on every rank a `step` (step, total, what) before each point. All
    values are JSON's. UserError, on every rank, where groups or loads do not fit the ranks;
    RuntimeError names a rank that did not come, or left.
    """
    meeting = Meeting(config.timeout_s)
    header = describe("collectives", config, device)
    if header:
        emit("header", report=asdict(header))
    hosts = meeting.share(header.hosts if header else None)
    plan = SweepPlan(config, hosts, device, _tables(config, meeting))
    Sweep(config, plan, meeting, device, emit).run()


def _tables(config: CollectivesConfig, meeting: Meeting) -> Tables:
    """The loads' files, which rank 0 alone must have."""
    found: Any = None
    if meeting.rank == 0:
        try:
            found = {load: read_load(load) for load in config.loads}
        except UserError as error:
            found = error
    found = meeting.share(found)
    if isinstance(found, UserError):
        raise found
    return found
