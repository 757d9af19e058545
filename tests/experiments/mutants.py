"""Small errors to plant in a module, one at a time: what `mutate.py` draws from.

Left out, since no test can or should tell them apart: docstrings, annotations, `__all__`, the text
and numbers of messages (f-strings, `raise`), logging, `Protocol` bodies, assertions, what only a
GPU runs (`is_cuda`, bodies of Triton kernels), and the constants of drawings.
"""

import ast
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "//",
    ast.Pow: "*",
}
OPPOSITE = {"min": "max", "max": "min", "any": "all", "all": "any"}
EITHER_WAY = ("min", "max", "math.gcd", "math.isclose", "torch.equal", "isinstance")
"""The order of their arguments means nothing, or is no mistake that anybody makes."""
LOGGING = ("_log.", "logging.", "warnings.")
DRAWN = ("plot", "picture", "draw")
"""In a file's name: its constants are sizes and colours."""
Found = tuple[ast.AST, str, str]
"""What to replace, the operator's name, the new source."""


@dataclass(frozen=True)
class Mutant:
    """`path` of the package with bytes [start, end) of its source replaced by `new`."""

    path: str
    line: int
    start: int
    end: int
    operator: str
    old: str
    new: str
    source_hash: str

    @property
    def key(self) -> str:
        """The same as long as the file is."""
        what = f"{self.path}:{self.start}:{self.operator}:{self.new}:{self.source_hash}"
        return hashlib.sha1(what.encode()).hexdigest()[:12]

    def apply(self, source: bytes) -> bytes:
        """The file with the error in it."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def mutants(path: str, source: bytes) -> list[Mutant]:
    """Every small error of the module `path`."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for text in lines:
        starts.append(starts[-1] + len(text))
    digest = hashlib.sha1(source).hexdigest()[:12]
    made = []
    drawn = any(word in path.rpartition("/")[2] for word in DRAWN)
    for node, operator, new in _found(ast.parse(source)):
        if drawn and operator == "constant":
            continue
        at = _span(node, starts)
        old = source[slice(*at)].decode()
        made.append(Mutant(path, node.lineno, *at, operator, old, new, digest))  # type: ignore[attr-defined]
    return made


def _span(node: ast.AST, starts: list[int]) -> tuple[int, int]:
    n: ast.expr = node  # type: ignore[assignment]
    assert n.end_lineno is not None and n.end_col_offset is not None
    return starts[n.lineno - 1] + n.col_offset, starts[n.end_lineno - 1] + n.end_col_offset


def _found(node: ast.AST) -> Iterator[Found]:
    """Errors in `node` and below it, in the order of the source."""
    if _left_out(node):
        return
    yield from _own(node)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _found(child)


def _left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        marks = [ast.unparse(d) for d in node.decorator_list]
        bases = [ast.unparse(b) for b in getattr(node, "bases", [])]
        kernel = any("triton.jit" in m or "overload" in m for m in marks)
        kernel |= isinstance(node, ast.FunctionDef) and "torch.cuda.Event" in ast.unparse(node)
        return kernel or "Protocol" in bases or node.name in ("__repr__", "__str__")
    if isinstance(node, ast.If):
        test = ast.unparse(node.test)
        return _on_gpu(node.test) or test in ("TYPE_CHECKING", "__name__ == '__main__'")
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    if isinstance(node, ast.Expr):
        text = ast.unparse(node.value)
        return isinstance(node.value, ast.Constant) or text.startswith(LOGGING)
    return False


def _on_gpu(test: ast.AST) -> bool:
    """Whether no machine without a GPU takes this branch."""
    text = ast.unparse(test)
    return "is_cuda" in text or "== 'cuda'" in text


def _own(node: ast.AST) -> Iterator[Found]:
    """The errors of this very node."""
    if isinstance(node, ast.Raise):
        yield node, "drop raise", "pass"
        node.exc = node.cause = None  # its text is left alone
    elif isinstance(node, ast.Constant):
        yield from _constant(node)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        new = COMPARE[type(node.ops[0])]
        sides = ast.unparse(node.left), ast.unparse(node.comparators[0])
        yield node, "compare", f"({sides[0]} {new} {sides[1]})"
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC and not _textual(node):
        left, right = ast.unparse(node.left), ast.unparse(node.right)
        yield node, "arithmetic", f"(({left}) {ARITHMETIC[type(node.op)]} ({right}))"
    elif isinstance(node, ast.Call):
        yield from _call(node)
    elif isinstance(node, ast.stmt):
        yield from _statement(node)
    yield from _logic(node)


def _logic(node: ast.AST) -> Iterator[Found]:
    if isinstance(node, ast.BoolOp):
        word = " or " if isinstance(node.op, ast.And) else " and "
        yield node, "and/or", "(" + word.join(f"({ast.unparse(v)})" for v in node.values) + ")"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, "negation", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and not _on_gpu(node.test):
        yield node.test, "negation", f"(not ({ast.unparse(node.test)}))"
    elif isinstance(node, ast.comprehension):
        for test in node.ifs:
            yield test, "condition", "True"


def _constant(node: ast.Constant) -> Iterator[Found]:
    if isinstance(node.value, bool):
        yield node, "constant", str(not node.value)
    elif isinstance(node.value, int):
        yield node, "constant", str(node.value + 1)
    elif isinstance(node.value, float):
        yield node, "constant", repr(node.value * 2 or 1.0)


def _textual(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(isinstance(s, ast.JoinedStr) or _is_text(s) for s in sides)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _call(node: ast.Call) -> Iterator[Found]:
    if isinstance(node.func, ast.Name) and node.func.id in OPPOSITE:
        yield node.func, "min/max", OPPOSITE[node.func.id]
    first = node.args[:2]
    if ast.unparse(node.func) in EITHER_WAY:
        return
    if len(first) == 2 and not any(isinstance(a, ast.Starred) for a in first):
        texts = [ast.unparse(a) for a in first]
        if texts[0] != texts[1]:
            swapped = ast.Call(node.func, [first[1], first[0], *node.args[2:]], node.keywords)
            yield node, "swapped arguments", ast.unparse(swapped)


def _statement(node: ast.AST) -> Iterator[Found]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        yield node, "drop call", "pass"
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)
    ):
        yield node, "drop assignment", "pass"
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield node, "return", "return None"
    elif isinstance(node, ast.Continue):
        yield node, "continue", "break"
