"""A function over tensors tells their shapes."""

import ast
from pathlib import Path

from moelstrom.kernels import registry

FOLDER = Path(registry.__file__).parent
SHAPES = ("[", "of any shape", "(any shape)")


def test_public_functions_over_tensors_give_shapes() -> None:
    silent, seen = [], 0
    for path in sorted(FOLDER.rglob("*.py")):
        if path.parent.name == "bench":
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            types = ast.unparse(node.args) + (ast.unparse(node.returns) if node.returns else "")
            seen += "torch.Tensor" in types
            told = any(word in (ast.get_docstring(node) or "") for word in SHAPES)
            if "torch.Tensor" in types and not told:
                silent.append(f"{path.relative_to(FOLDER)}: {node.name}")
    assert silent == [] and seen > 30
