"""Whether pieces hold every element of a tensor exactly once, in O(n log n) for n pieces.

The flattened tensor is laid out in rows as wide as the pieces' common stride; each piece is then
at most three rectangles. At every row where rectangles begin or end, those that begin must take
exactly the columns that the ended ones leave: by induction every row is covered exactly once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from .strides import Strided

Span = tuple[int, int]
_NOWHERE: Span = (2**63, 2**63)


class _Box(NamedTuple):
    top: int
    bottom: int
    left: int
    right: int


def check_cover(pieces: Sequence[Strided], numel: int) -> None:
    """Raises ValueError, naming elements, unless `pieces` hold [0, numel) exactly once."""
    width = _width(pieces, numel)
    begun, ended = _edges(pieces, numel, width)
    for row in sorted(begun.keys() | ended.keys()):
        taken, clash = _merged(begun[row])
        found = clash or _differ(taken, _merged(ended[row])[0])
        if found:
            left, right, kind = found
            _refuse(row * width + left, row * width + right, kind, pieces, numel)


def _width(pieces: Sequence[Strided], numel: int) -> int:
    strides = sorted({piece.stride for piece in pieces if piece.rows > 1})
    if len(strides) > 1:
        raise ValueError(f"its pieces have the strides {strides[0]} and {strides[-1]}, not one")
    return strides[0] if strides else max(numel, 1)


def _edges(
    pieces: Sequence[Strided], numel: int, width: int
) -> tuple[dict[int, list[Span]], dict[int, list[Span]]]:
    """The columns that begin and that end at each row; a floor ends where the tensor begins, and
    a ceiling begins behind its last row, which is padded."""
    begun, ended = defaultdict(list), defaultdict(list)
    height, rest = divmod(numel, width)
    boxes = [box for piece in pieces for box in _boxes(piece, width)]
    if rest:
        boxes.append(_Box(height, height + 1, rest, width))
        height += 1
    for box in boxes:
        begun[box.top].append((box.left, box.right))
        ended[box.bottom].append((box.left, box.right))
    ended[0].append((0, width))
    begun[height].append((0, width))
    return begun, ended


def _boxes(piece: Strided, width: int) -> Iterator[_Box]:
    top, left = divmod(piece.offset, width)
    if piece.rows > 1:
        right = left + piece.run
        yield _Box(top, top + piece.rows, left, min(right, width))
        if right > width:
            yield _Box(top + 1, top + piece.rows + 1, 0, right - width)
        return
    bottom, right = divmod(piece.offset + piece.run, width)
    if top == bottom:
        yield _Box(top, top + 1, left, right)
        return
    if left:
        yield _Box(top, top + 1, left, width)
        top += 1
    if top < bottom:
        yield _Box(top, bottom, 0, width)
    if right:
        yield _Box(bottom, bottom + 1, 0, right)


def _merged(spans: list[Span]) -> tuple[list[Span], tuple[int, int, str] | None]:
    """Ascending spans with touching ones joined, and the first overlap."""
    joined: list[Span] = []
    for left, right in sorted(spans):
        if joined and left < joined[-1][1]:
            return joined, (left, min(right, joined[-1][1]), "held twice")
        if joined and left == joined[-1][1]:
            joined[-1] = (joined[-1][0], right)
        else:
            joined.append((left, right))
    return joined, None


def _differ(taken: list[Span], left_free: list[Span]) -> tuple[int, int, str] | None:
    """The first columns that only one of both has; each one's spans ascend and do not touch."""
    for i, (ours, theirs) in enumerate(zip_longest(taken, left_free, fillvalue=_NOWHERE)):
        if ours == theirs:
            continue
        if ours[0] != theirs[0]:
            first, end = min(ours, theirs)
            kind = "held twice" if ours[0] < theirs[0] else "missing"
            return first, min(end, max(ours[0], theirs[0])), kind
        shorter, kind = (taken, "missing") if ours[1] < theirs[1] else (left_free, "held twice")
        first, end = sorted((ours[1], theirs[1]))
        return first, min([end, *(left for left, _ in shorter[i + 1 : i + 2])]), kind
    return None


def _refuse(first: int, last: int, kind: str, pieces: Sequence[Strided], numel: int) -> None:
    if first >= numel:
        end = max(p.offset + (p.rows - 1) * p.stride + p.run for p in pieces)
        raise ValueError(f"a piece ends at {end}, but the tensor has {numel} elements")
    raise ValueError(f"elements [{first}, {last}) are {kind}")
