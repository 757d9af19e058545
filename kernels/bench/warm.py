"""Compiling before anything is timed: one process per width and contender, all at once.

Run as `python -m moelstrom.kernels.bench.warm WIDTH CONTENDER [--quick]`; what it compiles stays in
the caches of Triton and of torch.compile.
"""

import subprocess
import sys
import time
from collections.abc import Callable

import torch

from .cases import TOKENS, WIDTHS, make
from .peers import BLOCKS, EXPERTS, OURS, narrow_liger

LIGER, COMPILED = "liger-kernel fused MoE", "torch grouped_mm, compiled"
CONTENDERS = (OURS, COMPILED, LIGER)
LIMIT_S = 150


def run(index: int, name: str, quick: bool) -> None:
    """Call one contender at one width, forward and backward, at both scopes where it has them."""
    if name == LIGER:
        narrow_liger(quick)
    # torch.compile compiles for one number of tokens; Triton for any.
    tokens = TOKENS if name == COMPILED else 1024
    case = make(WIDTHS[index], "skewed", tokens)
    for scope in (EXPERTS, BLOCKS):
        if name in scope:
            scope[name](case).both()
    torch.cuda.synchronize()


def compile_all(widths: list[int], quick: bool, say: Callable[[str], None]) -> None:
    """Warm every contender in processes of their own. A failure is only reported: the timing run
    meets it again."""
    names = [name for name in CONTENDERS if not (quick and name == COMPILED)]
    jobs = {(i, name): _start(i, name, quick) for i in widths for name in names}
    end = time.monotonic() + LIMIT_S
    for (index, name), process in jobs.items():
        label = f"{WIDTHS[index]} {name}"
        try:
            _, errors = process.communicate(timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            say(f"compiling {label}: not done after {LIMIT_S} s, left to the timing run")
            continue
        if process.returncode:
            say(f"compiling {label} failed: {(errors.strip().splitlines() or ['?'])[-1][:200]}")


def _start(index: int, name: str, quick: bool) -> "subprocess.Popen[str]":
    command = [sys.executable, "-P", "-m", __name__, str(index), name]
    command += ["--quick"] if quick else []
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2], "--quick" in sys.argv[3:])
