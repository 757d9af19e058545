"""Every file reaches another node, and every node gets every file, whatever the placement."""

from hypothesis import given
from hypothesis import strategies as st

from moelstrom.moe.checkpoint.replica.plan import Candidate, Move, Places, candidates, copies

names = st.lists(st.sampled_from("abcd"), min_size=1, max_size=9)


def test_a_ring_of_even_nodes() -> None:
    places = Places(["a", "a", "b", "b", "c", "c"])
    assert [places.peer(rank) for rank in range(6)] == [2, 3, 4, 5, 0, 1]
    assert [places.leader(rank) for rank in range(6)] == [0, 0, 2, 2, 4, 4]
    assert places.local(3) == (1, 2)
    held = [("f0", 10), None, ("f2", 12), ("f3", 13), ("f4", 14), ("f5", 15)]
    assert copies(places, held)[:2] == [Move("f0", 10, 0, 2), Move("f2", 12, 2, 4)]
    assert Places(["a", "a"]).peer(1) is None


@given(names)
def test_any_one_lost_node_leaves_every_file(nodes: list[str]) -> None:
    places = Places(nodes)
    where = {str(rank): {places.node_of[rank]} for rank in range(len(nodes))}
    for move in copies(places, [(str(rank), 1) for rank in range(len(nodes))]):
        assert move.file == str(move.source)
        where[move.file].add(places.node_of[move.target])
    if len(set(nodes)) > 1:
        assert all(len(found) == 2 for found in where.values())


@given(names, st.data())
def test_moves_bring_every_file_to_every_node(nodes: list[str], data: st.DataObject) -> None:
    places = Places(nodes)
    every = st.sets(st.sampled_from(range(len(places.members))), min_size=1)
    holders = {f"f{i}": sorted(data.draw(every)) for i in range(5)}
    candidate = Candidate(3, "hash", dict.fromkeys(holders, 7), holders)
    where = {name: set(found) for name, found in holders.items()}
    for move in candidate.moves(places):
        assert places.node_of[move.source] in holders[move.file]
        assert places.node_of[move.target] not in where[move.file]
        where[move.file].add(places.node_of[move.target])
    assert all(found == set(range(len(places.members))) for found in where.values())


def test_candidates_are_newest_first_and_kept_apart_by_manifest() -> None:
    def claim(step: int, manifest: str, *files: str) -> dict:
        return {"step": step, "manifest": manifest, "sizes": {"x": 1, "y": 1}, "files": files}

    found = list(
        candidates(
            [
                [claim(2, "m", "x", "y"), claim(4, "m", "x")],
                [claim(4, "n", "y"), claim(4, "m", "y")],
            ]
        )
    )
    assert [(c.step, c.manifest, c.complete) for c in found] == [
        (4, "n", False),
        (4, "m", True),
        (2, "m", True),
    ]
    assert found[1].holders == {"x": [0], "y": [1]} and found[1].informed == 0
    found[1].drop(0, ["x", "y"])
    assert found[1].holders == {"x": [], "y": [1]} and not found[1].complete
