"""In which order the programs of a persistent kernel take their tiles."""

import triton
import triton.language as tl


@triton.jit
def program_index(XCDS: tl.constexpr):
    """This program's place when each die (XCD) takes one contiguous run, so that the programs
    sharing operands share an L2; the hardware deals programs to the dies in turn."""
    pid = tl.program_id(0)
    if XCDS > 1:
        programs = tl.num_programs(0)
        die, place = pid % XCDS, pid // XCDS
        extra = programs % XCDS
        pid = die * (programs // XCDS) + tl.minimum(die, extra) + place
    return pid


@triton.jit
def locate(tile, rows, columns, GROUP_M: tl.constexpr):
    """(row, column) of a tile: `GROUP_M` rows of tiles go together, down the rows first.

    The programs at work at one time then share both their rows and their weights in L2.
    """
    band = GROUP_M * columns
    first = tile // band * GROUP_M
    height = tl.minimum(rows - first, GROUP_M)
    inside = tile % band
    return first + inside % height, inside // height
