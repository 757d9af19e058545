"""Who keeps a copy of whose file, and who sends what to whom: pure functions of what ranks report.

A node is what shares one memory folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Move:
    """`file` of `size` bytes goes from rank `source` to rank `target`."""

    file: str
    size: int
    source: int
    target: int


class Places:
    """The ranks of each node, from the node's name of every rank."""

    def __init__(self, names: Sequence[str]) -> None:
        order = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.node_of = [order[name] for name in names]
        self.members: list[list[int]] = [[] for _ in order]
        for rank, node in enumerate(self.node_of):
            self.members[node].append(rank)

    def leader(self, rank: int) -> int:
        """The lowest rank of this rank's node."""
        return self.members[self.node_of[rank]][0]

    def local(self, rank: int) -> tuple[int, int]:
        """This rank's place on its node, and how many ranks that has."""
        ranks = self.members[self.node_of[rank]]
        return ranks.index(rank), len(ranks)

    def peer(self, rank: int) -> int | None:
        """The rank on the next node that keeps a copy of this one's file; None on a single node."""
        if len(self.members) == 1:
            return None
        ranks = self.members[(self.node_of[rank] + 1) % len(self.members)]
        return ranks[self.local(rank)[0] % len(ranks)]


def copies(places: Places, held: Sequence[tuple[str, int] | None]) -> list[Move]:
    """Each rank's file (name and bytes; None: it has none) to its peer."""
    return [
        Move(*own, rank, peer)
        for rank, own in enumerate(held)
        if own and (peer := places.peer(rank)) is not None
    ]


@dataclass(frozen=True)
class Candidate:
    """One save that memory may hold: its step, its manifest's SHA-256, each file's size, and which
    nodes hold each file."""

    step: int
    manifest: str
    sizes: Mapping[str, int]
    holders: dict[str, list[int]]

    @property
    def complete(self) -> bool:
        """Whether every file is somewhere."""
        return all(self.holders[name] for name in self.sizes)

    @property
    def informed(self) -> int:
        """A node that has the manifest: every claim names one."""
        return min(node for nodes in self.holders.values() for node in nodes)

    def drop(self, node: int, files: Sequence[str]) -> None:
        """Forget files that turned out damaged."""
        for name in files:
            if node in self.holders[name]:
                self.holders[name].remove(node)

    def moves(self, places: Places) -> list[Move]:
        """What brings every file to every node; the work goes round among holders and ranks."""
        result = []
        for i, (name, size) in enumerate(sorted(self.sizes.items())):
            nodes = self.holders[name]
            for node, targets in enumerate(places.members):
                if node not in nodes:
                    sources = places.members[nodes[(i + node) % len(nodes)]]
                    pair = sources[i % len(sources)], targets[i % len(targets)]
                    result.append(Move(name, size, *pair))
        return result


def candidates(claims: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Candidate]:
    """The saves that the nodes claim, newest first.

    A claim is {"step", "manifest", "sizes": all files of the save, "files": those on the node}.
    """
    found: dict[tuple[int, str], Candidate] = {}
    for node, own in enumerate(claims):
        for claim in own:
            key, sizes = (claim["step"], claim["manifest"]), claim["sizes"]
            known = found.setdefault(key, Candidate(*key, sizes, {name: [] for name in sizes}))
            for name in claim["files"]:
                known.holders[name].append(node)
    for _, candidate in sorted(found.items(), reverse=True):
        yield candidate
