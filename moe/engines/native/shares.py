"""Which rank owns which elements under the native engine's ZeRO-1: buckets, cut into shards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...config import OptimizerConfig
from ...state.names import Local
from ..kind import Run, kinds


@dataclass(frozen=True)
class BucketPiece:
    """Elements [start, start + numel) of the flattened parameter `local`, at `position` of the
    bucket."""

    local: Local
    start: int
    numel: int
    position: int


def split_elements(held: Sequence[Local], shards: int) -> tuple[list[BucketPiece], int]:
    """Cut the parameters, laid end to end, into `shards` equal runs of elements.

    Returns the pieces and the elements of a shard (the last is padded).
    """
    size = -(-sum(p.numel for p in held) // shards)
    pieces, position = [], 0
    for p in held:
        start = 0
        while start < p.numel:
            numel = min(p.numel - start, size - position % size)
            pieces.append(BucketPiece(p, start, numel, position))
            start, position = start + numel, position + numel
    return pieces, size


def split_matrices(held: Sequence[Local], shards: int) -> tuple[list[BucketPiece], int]:
    """Deal whole matrices to `shards` in order, balanced to within a matrix (Muon needs them
    whole); a shard is padded to the largest."""
    total = sum(p.numel for p in held)
    runs: list[tuple[int, Local, int, int]] = []
    loads = [0] * shards
    seen = 0
    for p in held:
        rows, columns = p.matrix_shape
        size = rows * columns
        for start in range(0, p.numel, size):
            owner = (2 * seen + size) * shards // (2 * total)
            runs.append((owner, p, start, size))
            loads[owner], seen = loads[owner] + size, seen + size
    return _place(runs, max(loads)), max(loads)


def _place(runs: list[tuple[int, Local, int, int]], shard: int) -> list[BucketPiece]:
    pieces: list[BucketPiece] = []
    position, current = 0, 0
    for owner, p, start, size in runs:
        last = pieces[-1] if pieces and owner == current else None
        if owner != current:
            position, current = owner * shard, owner
        if last and last.local.name == p.name and last.position + last.numel == position:
            pieces[-1] = BucketPiece(p, last.start, last.numel + size, last.position)
        else:
            pieces.append(BucketPiece(p, start, size, position))
        position += size
    return pieces


def split(held: Sequence[Local], shards: int, rule: str) -> tuple[list[BucketPiece], int]:
    """The pieces of a bucket under an update rule, and the elements of a shard."""
    return (split_matrices if rule == "muon" else split_elements)(held, shards)


def fill_buckets(held: Sequence[Local], limit_bytes: int) -> list[list[int]]:
    """Indexes of the parameters, in order, in runs of about `limit_bytes` of fp32 gradients."""
    buckets: list[list[int]] = []
    room = 0
    for i, p in enumerate(held):
        if room <= 0:
            buckets.append([])
            room = limit_bytes
        buckets[-1].append(i)
        room -= 4 * p.numel
    return buckets


def share(
    held: Sequence[Local], members: int, bucket_bytes: int, optimizer: OptimizerConfig
) -> Iterator[tuple[int, Run]]:
    """Buckets of parameters, from the last to the first, each cut into `members` shards."""
    backwards = list(reversed(held))
    index = {p.name: i for i, p in enumerate(held)}
    for (update, _), chosen in kinds(backwards, optimizer).items():
        group = [backwards[i] for i in chosen]
        for bucket in fill_buckets(group, bucket_bytes):
            pieces, size = split([group[i] for i in bucket], members, update)
            for piece in pieces:
                run = Run(index[piece.local.name], piece.start, piece.numel)
                yield piece.position // size, run
