"""Machine code as text to a flow graph, its loops, and the instructions that matter in them."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Instruction:
    """`op` with its modifiers ("LDG.E.128", "v_mfma_f32_32x32x8_bf16")."""

    op: str
    label: str | None = None
    """Where branches to it point."""
    branch: str | None = None
    """The label it may jump to."""
    falls: bool = True
    """Whether it may go on to the next instruction."""

    @property
    def matrix(self) -> bool:
        return bool(_MATRIX.match(self.op))

    @property
    def spill_store(self) -> bool:
        """A store to a thread's own memory on NVIDIA."""
        return self.op.split(".")[0] == "STL"

    @property
    def load_bytes(self) -> int:
        """Bytes a thread loads from global memory (a bulk copy: a tile's row; none: 0).

        Scalar loads do not count: one serves the whole warp.
        """
        if found := _AMD_LOAD.match(self.op):
            return _AMD_BYTES[found["size"]]
        base, *modifiers = self.op.split(".")
        if base in ("UTMALDG", "UBLKCP"):
            return BULK_BYTES
        if base not in ("LDG", "LDGSTS", "LD"):
            return 0
        return next((_NVIDIA_BYTES[m] for m in modifiers if m in _NVIDIA_BYTES), 4)


BULK_BYTES = 128
"""What one bulk copy (TMA) counts as: a whole line."""
_MATRIX = re.compile(r"v_s?mfma|(?:UTC)?[HIQDOB](?:MMA|GMMA)\b")
_AMD_LOAD = re.compile(
    r"(?:global|buffer|flat)_load_(?:lds_)?"
    r"(?P<size>[us]byte|[us]?short|dword(?:x[234])?)(?:_d16|_hi)*(?:$|_)"
)
_AMD_BYTES = {
    **dict.fromkeys(("ubyte", "sbyte"), 1),
    **dict.fromkeys(("ushort", "sshort", "short"), 2),
    **{"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16},
}
_NVIDIA_BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}

_AMD_LABEL = re.compile(r"(\.LBB\w+):")
_AMD_ENDS = ("s_endpgm", "s_setpc_b64", "s_trap")
_SASS_LINE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


def parse_amdgcn(text: str, name: str) -> list[Instruction]:
    """The kernel `name` of an amdgcn listing."""
    body = re.split(rf"(?m)^{re.escape(name)}:", text, maxsplit=1)[-1]
    body = re.split(r"(?m)^\.Lfunc_end\d+:", body, maxsplit=1)[0]
    instructions: list[Instruction] = []
    label = None
    for line in body.splitlines():
        if found := _AMD_LABEL.match(line):
            if label:
                # An empty block.
                instructions.append(Instruction("s_nop", label))
            label = found[1]
            continue
        words = line.partition(";")[0].split()
        if not words or words[0].startswith("."):
            continue
        op = words[0]
        branch = words[1] if op == "s_branch" or op.startswith("s_cbranch") else None
        falls = op != "s_branch" and op not in _AMD_ENDS
        instructions.append(Instruction(op, label, branch, falls))
        label = None
    return instructions


def parse_sass(text: str) -> list[Instruction]:
    """The only kernel of a `cuobjdump -sass` listing; labels are its addresses."""
    return [_sass(*found.groups()) for found in map(_SASS_LINE.match, text.splitlines()) if found]


def _sass(address: str, predicate: str | None, op: str, operands: str) -> Instruction:
    base = op.split(".")[0]
    branch = None
    # ptxas also leaves loops by a call that never returns (CALL.REL.NOINC).
    if base in ("BRA", "CALL"):
        target = re.search(r"0x([0-9a-f]+)", operands)
        branch = target[1].zfill(4) if target else None
        # A uniform predicate is an operand: "BRA.U !UP0, 0x190".
        predicate = predicate or ("UP" if "," in operands else None)
    falls = predicate is not None or base not in ("BRA", "BRX", "JMP", "EXIT", "RET")
    return Instruction(op, address.zfill(4), branch, falls)


@dataclass(frozen=True)
class FlowGraph:
    """Basic blocks and the blocks each may go on to."""

    blocks: list[list[Instruction]]
    successors: Mapping[int, set[int]]

    def instructions(self, blocks: Iterable[int]) -> Iterator[Instruction]:
        for b in sorted(blocks):
            yield from self.blocks[b]

    def loops(self) -> list[frozenset[int]]:
        """Every loop as its blocks, each loop before those inside it."""
        return list(_loops(frozenset(self.successors), self.successors))


def flow_graph(instructions: list[Instruction]) -> FlowGraph:
    """Cut at branches and their targets."""
    targets = {i.branch for i in instructions if i.branch}
    blocks: list[list[Instruction]] = []
    cut = True
    for i in instructions:
        if cut or i.label in targets:
            blocks.append([])
        blocks[-1].append(i)
        cut = i.branch is not None or not i.falls
    starts = {block[0].label: b for b, block in enumerate(blocks) if block[0].label}
    successors: dict[int, set[int]] = {}
    for b, block in enumerate(blocks):
        last = block[-1]
        after = {b + 1} if last.falls and b + 1 < len(blocks) else set()
        jump = starts.get(last.branch) if last.branch else None
        successors[b] = after | ({jump} if jump is not None else set())
    return FlowGraph(blocks, successors)


def _loops(nodes: frozenset[int], graph: Mapping[int, set[int]]) -> Iterator[frozenset[int]]:
    for part in _components(nodes, graph):
        if len(part) == 1 and not graph[next(iter(part))] & part:
            continue
        yield part
        entries = {s for n in graph if n not in part for s in graph[n] & part} or {min(part)}
        yield from _loops(part - entries, graph)


def _components(nodes: frozenset[int], graph: Mapping[int, set[int]]) -> Iterator[frozenset[int]]:
    """Strongly connected components of the graph within `nodes`."""
    before: dict[int, set[int]] = {n: set() for n in nodes}
    for n in nodes:
        for s in graph[n] & nodes:
            before[s].add(n)
    left = set(nodes)
    for root in reversed(_finish_order(nodes, graph)):
        if root not in left:
            continue
        part, stack = set(), [root]
        while stack:
            n = stack.pop()
            if n in left:
                left.remove(n)
                part.add(n)
                stack.extend(before[n])
        yield frozenset(part)


def _finish_order(nodes: frozenset[int], graph: Mapping[int, set[int]]) -> list[int]:
    order: list[int] = []
    seen: set[int] = set()
    for root in sorted(nodes):
        stack = [(root, False)]
        while stack:
            n, done = stack.pop()
            if done:
                order.append(n)
            elif n not in seen:
                seen.add(n)
                stack.append((n, True))
                stack.extend((s, False) for s in graph[n] & nodes if s not in seen)
    return order


def main_loops(graph: FlowGraph) -> tuple[bool, list[Instruction]]:
    """Whether a matrix instruction stands in a loop, and the main loop's instructions.

    The main loop is the innermost with a matrix instruction; where that one loads nothing (another
    warp loads for it, or there is no such loop) it is the innermost with global loads; without
    loops, the whole kernel.
    """
    loops = graph.loops()
    matrix = _innermost(graph, loops, lambda i: i.matrix)
    body = list(graph.instructions(frozenset().union(*matrix)))
    if not any(i.load_bytes for i in body):
        loading = _innermost(graph, loops, lambda i: bool(i.load_bytes))
        body += graph.instructions(frozenset().union(*loading) if loading else graph.successors)
    return bool(matrix), body


def _innermost(
    graph: FlowGraph, loops: list[frozenset[int]], holds: Callable[[Instruction], bool]
) -> list[frozenset[int]]:
    having = [b for b in loops if any(map(holds, graph.instructions(b)))]
    return [b for b in having if not any(inner < b for inner in having)]
