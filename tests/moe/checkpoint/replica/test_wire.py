"""Files that some of three ranks exchange, while another has no part in it."""

from pathlib import Path

import torch.distributed as dist
from ranks import run_ranks

from moelstrom.moe.checkpoint.replica.plan import Move
from moelstrom.moe.checkpoint.replica.wire import Wire


def contents(name: str, size: int) -> bytes:
    return bytes((7 * i + len(name)) % 251 for i in range(size))


MOVES = [Move("a", 300_000, 0, 1), Move("lost", 8, 1, 0), Move("c", 9, 1, 0)]


def exchange(root: Path) -> tuple[dict[str, str], dict[str, bytes]]:
    """What went wrong on this rank, and which files it has now."""
    rank = dist.get_rank()
    folder = root / str(rank)
    folder.mkdir(parents=True)
    for move in MOVES:
        if move.source == rank and move.file != "lost":
            (folder / move.file).write_bytes(contents(move.file, move.size))
    wire = Wire(rank, dist.get_world_size())
    problems = wire.exchange(MOVES, folder)
    dist.barrier()
    return problems, {file.name: file.read_bytes() for file in folder.iterdir()}


def test_files_go_where_they_are_sent_and_a_third_rank_gets_none(tmp_path: Path) -> None:
    (first, held0), (second, held1), (third, held2) = run_ranks(3, exchange, tmp_path)
    assert third == held2 == {}
    for held in (held0, held1):
        for name, size in (("a", 300_000), ("c", 9)):
            assert held[name] == contents(name, size)
    assert first.keys() <= {"lost"} and second.keys() == {"lost"}
    assert not {name for name in held0 | held1 if name.endswith(".partial") and name[0] != "l"}
