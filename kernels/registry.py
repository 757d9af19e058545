"""The operators with Triton kernels. Each module's `variants(target)` yields every committed form
of its kernels."""

from collections.abc import Iterator
from importlib import import_module

from .. import UserError
from .spec import Variant
from .targets import Target

OPERATORS = tuple(
    f"{__package__}.{name}" for name in ("grouped_mlp", "permute", "rms_norm", "newton_schulz")
)


def modules(names: list[str] | None = None) -> list[str]:
    """The modules of the operators named ("grouped_mlp"), or all of them."""
    known = {module.rpartition(".")[-1]: module for module in OPERATORS}
    for name in names or ():
        if name not in known:
            raise UserError(f"operator {name}: not known; one of {', '.join(known)}")
    return [known[name] for name in names] if names else list(OPERATORS)


def variants(target: Target, module: str) -> Iterator[Variant]:
    """Every variant of the operator's module for `target`."""
    yield from import_module(module).variants(target)
