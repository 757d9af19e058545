"""Who works with whom: every rank in one team of each kind, as Megatron's order says."""

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ranks import run_ranks

from moelstrom import UserError
from moelstrom.moe.config import LayoutConfig
from moelstrom.moe.grid import Grid, Place, Shape

DEGREES = st.integers(1, 4)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    dp, cp = draw(DEGREES), draw(DEGREES)
    ep = draw(st.sampled_from([n for n in range(1, dp * cp + 1) if dp * cp % n == 0]))
    return Shape(dp=dp, cp=cp, ep=ep, tp=draw(DEGREES), pp=draw(DEGREES))


@settings(deadline=None)
@given(shapes())
def test_every_way_parts_all_ranks_by_its_degree(shape: Shape) -> None:
    sizes = {"world": shape.world_size, "replicas": shape.replicas}
    sizes |= {name: getattr(shape, name) for name in ("dp", "cp", "tp", "pp", "ep")}
    sizes["edp"] = shape.replicas // shape.ep
    found = dict(shape.partitions())
    assert list(found) == ["world", "replicas", "dp", "cp", "tp", "pp", "ep", "edp"]
    for name, teams in found.items():
        assert {len(team) for team in teams} == {sizes[name]}
        assert sorted(rank for team in teams for rank in team) == list(range(shape.world_size))


@settings(deadline=None)
@given(shapes(), st.data())
def test_places_and_ranks_are_inverse(shape: Shape, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, shape.world_size - 1))
    assert shape.rank(shape.place(rank)) == rank


def test_tensor_ranks_are_innermost_and_stages_outermost() -> None:
    shape = Shape(dp=2, cp=2, tp=2, pp=2, ep=2)
    teams = dict(shape.partitions())
    assert shape.place(11) == Place(stage=1, tensor=1, replica=1)
    assert teams["tp"][0] == [0, 1] and teams["cp"][0] == [0, 2] and teams["dp"][0] == [0, 4]
    assert teams["pp"][0] == [0, 8] and teams["ep"][0] == [0, 2] and teams["edp"][0] == [0, 4]


def test_expert_parallelism_divides_the_replicas() -> None:
    with pytest.raises(ValidationError, match=r"ep is 3, which does not divide dp x cp 4"):
        Shape(dp=2, cp=2, ep=3)


def teams(ep: int) -> dict[str, tuple[int, int, int]]:
    """(rank, size, sum of the members' world ranks) of each of this rank's teams."""
    grid = Grid(LayoutConfig(dp=dist.get_world_size(), ep=ep))
    found = {}
    for name in ("world", "replicas", "dp", "cp", "tp", "pp", "ep", "edp", "etp"):
        team = getattr(grid, name)
        members = [None] * team.size
        dist.all_gather_object(members, dist.get_rank(), group=team.group)
        found[name] = team.rank, team.size, sum(members)  # type: ignore[arg-type]
    assert grid.writer == (dist.get_rank() == 0)
    return found


def several() -> tuple[dict[str, tuple[int, int, int]], dict[str, tuple[int, int, int]]]:
    with pytest.raises(UserError, match="is 4, but 2 processes were started"):
        Grid(LayoutConfig(dp=4))
    return teams(1), teams(2)


def test_process_groups_are_the_teams() -> None:
    (first, _), (second, shared) = run_ranks(2, several)
    assert shared["world"] == shared["replicas"] == shared["dp"] == shared["ep"] == (1, 2, 1)
    assert shared["edp"] == shared["tp"] == shared["pp"] == shared["cp"] == (0, 1, 1)
    assert first["ep"] == (0, 1, 0) and second["edp"] == (1, 2, 1)
