import pytest

from moelstrom import UserError
from moelstrom.cluster.backend import Node
from moelstrom.cluster.config import ClusterConfig
from moelstrom.cluster.placement import (
    check_fits,
    describe_placement,
    gpus_per_worker,
    place_ranks,
)
from moelstrom.cluster.spec import WorkerSpec
from moelstrom.cluster.supervisor import usable_sizes

TWO = (Node("a", 8, 2), Node("b", 8, 4))
NO_GPU = (Node("a", 4, 0), Node("b", 2, 0))


def config(**fields: object) -> ClusterConfig:
    return ClusterConfig.model_validate(fields)


def test_gpus_are_used_where_there_are_any() -> None:
    assert gpus_per_worker(TWO, config()) == 1
    assert gpus_per_worker(NO_GPU, config()) == 0
    assert gpus_per_worker(TWO, config(gpus_per_worker=0)) == 0


@pytest.mark.parametrize(
    ("strategy", "most"), [("PACK", 6), ("SPREAD", 6), ("STRICT_PACK", 4), ("STRICT_SPREAD", 2)]
)
def test_the_largest_group_of_each_strategy(strategy: str, most: int) -> None:
    check_fits(TWO, most, config(strategy=strategy))
    with pytest.raises(UserError, match=rf"holds at most {most}: a \(8 CPU, 2 GPU\), b"):
        check_fits(TWO, most + 1, config(strategy=strategy))


def test_cpus_per_worker_limit_the_group() -> None:
    check_fits(NO_GPU, 3, config(cpus_per_worker=2))
    with pytest.raises(UserError, match=r"4 workers of 2 CPU and 0 GPU"):
        check_fits(NO_GPU, 4, config(cpus_per_worker=2))


@pytest.mark.parametrize(
    ("strategy", "world", "nodes"),
    [
        ("PACK", 3, "aab"),
        ("SPREAD", 3, "aab"),
        ("SPREAD", 6, "aabbbb"),
        ("STRICT_PACK", 3, "bbb"),
        ("STRICT_SPREAD", 2, "ab"),
    ],
)
def test_ranks_of_a_node_stand_together(strategy: str, world: int, nodes: str) -> None:
    slots = place_ranks(TWO, world, config(strategy=strategy))
    assert [slot.rank for slot in slots] == list(range(world))
    assert "".join(slot.node for slot in slots) == nodes
    assert all(slot.device == "0" for slot in slots[:1])


def test_a_dry_run_on_this_machine_starts_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    slots = describe_placement(3, config(gpus_per_worker=0))
    assert [(slot.rank, slot.device) for slot in slots] == [(0, "cpu"), (1, "cpu"), (2, "cpu")]
    assert len({slot.node for slot in slots}) == 1


def test_sizes_of_a_group() -> None:
    assert WorkerSpec(("x",), 4).world_sizes == (4,)
    spec = WorkerSpec(("x",), 4, (4, 2, 1))
    assert usable_sizes(spec, config()) == (4,)
    assert usable_sizes(spec, config(elastic=True)) == (4, 2, 1)
    assert usable_sizes(spec, config(elastic=True, min_workers=2)) == (4, 2)
    for sizes in ((2, 1), (4, 2, 3), (4, 4)):
        with pytest.raises(ValueError, match="must descend from world_size 4"):
            WorkerSpec(("x",), 4, sizes)


@pytest.mark.parametrize("fields", [{"elastic": True}, {"spare_workers": 1}])
def test_strict_strategies_lose_everything_at_once(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="need strategy PACK or SPREAD"):
        config(strategy="STRICT_SPREAD", **fields)


def test_a_worker_takes_all_its_cpus_and_one_gpu() -> None:
    """Whichever of them is scarce on a node."""
    nodes = (Node("few-gpus", 16, 2), Node("few-cpus", 7, 8))
    slots = place_ranks(nodes, 5, config(cpus_per_worker=2))
    assert [(s.node, s.device) for s in slots] == [
        ("few-gpus", "0"),
        ("few-gpus", "1"),
        ("few-cpus", "0"),
        ("few-cpus", "1"),
        ("few-cpus", "2"),
    ]
    with pytest.raises(UserError, match="holds at most 5"):
        check_fits(nodes, 6, config(cpus_per_worker=2))
    assert [n.room(2, 0) for n in nodes] == [8, 3]
