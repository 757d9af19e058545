"""Splitting a tile in registers, for epilogues that take it piece by piece."""

import triton
import triton.language as tl


@triton.jit
def halves(block, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and right [ROWS, COLUMNS] of a [ROWS, 2 * COLUMNS] block."""
    return block.reshape(ROWS, 2, COLUMNS).permute(0, 2, 1).split()


@triton.jit
def pieces(block, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr):
    """A [ROWS, COUNT * COLUMNS] block as COUNT (1, 2, 4 ...) [ROWS, COLUMNS] pieces, in order."""
    if COUNT == 1:
        parts = (block,)
    elif COUNT == 2:
        parts = halves(block, ROWS, COLUMNS)
    else:
        left, right = halves(block, ROWS, COUNT // 2 * COLUMNS)
        HALF: tl.constexpr = COUNT // 2
        parts = pieces(left, ROWS, COLUMNS, HALF) + pieces(right, ROWS, COLUMNS, HALF)
    return parts
