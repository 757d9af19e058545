"""The whole benchmark: accuracy, experts and blocks against peers, the other operators."""

import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from . import accuracy, others
from .cases import LOADS, SKEW, TOKENS, WIDTHS, LayerCase, make
from .peers import (
    DENSE,
    DENSE_CHAIN,
    EQUAL_GROUPS,
    LIGER_NOTE,
    SCOPES,
    SLOW,
    Maker,
    Pair,
    narrow_liger,
)
from .timing import DeviceLostError, Rounds, Timing, free, measure, reason
from .warm import COMPILED, compile_all

METHOD = (
    "CUDA events around each call; before it 512 MiB are written 24 times, so L2 is cold and the "
    "host has queued the call's launches; contenders of a case are called in turn, round after "
    "round; median, 10th and 90th percentile over the rounds. forward is called with gradients "
    "enabled, as in training; forward+backward makes the gradients of tokens, both expert weights "
    "and (block) routing weights as fresh tensors. peak_bytes: allocated during one call beside "
    "its inputs, outputs included. skewed: the experts' loads fall linearly, largest over "
    f"smallest {SKEW:g}."
)
FULL = Rounds(rounds=15, slow_rounds=5)
QUICK = Rounds(rounds=7, slow_rounds=3)

Say = Callable[[str], None]
Keep = Callable[[dict[str, Any]], object]


class KernelBench:
    """One run; `results` grows as it goes, and `keep` gets it whenever it has grown, so that what
    was measured is not lost with the run."""

    def __init__(self, quick: bool, say: Say, keep: Keep) -> None:
        self.quick, self.say, self.keep = quick, say, keep
        self.plan = QUICK if quick else FULL
        self.results: dict[str, Any] = {
            **environment(),
            "quick": quick,
            "tokens": TOKENS,
            "dense_chain": DENSE_CHAIN,
            "liger": LIGER_NOTE,
            "method": METHOD,
            "tolerances": {"whole": accuracy.WHOLE, "row": accuracy.ROW},
            "accuracy": [],
            "out_of_tolerance": 0,
            "repeats": {},
            "timings": [],
            "streams": [],
            "newton_schulz": [],
            "cross_entropy": [],
            "failed": [],
        }

    def run(self) -> dict[str, Any]:
        """Everything, in order; a part that fails is named in the results and the rest goes on."""
        torch.backends.cuda.matmul.allow_tf32 = False
        parts: tuple[Callable[[], None], ...] = (
            self._compile,
            self._accuracy,
            self._timings,
            self._streams,
            self._newton_schulz,
            self._cross_entropy,
        )
        for part in parts:
            try:
                part()
            except DeviceLostError as error:
                self._fail("GPU lost", error)
                break
            # A broken kernel must not cost the other parts their figures.
            except Exception as error:
                self._fail(part.__name__.strip("_"), error)
            self.keep(self.results)
            free()
        return self.results

    def _fail(self, what: str, error: Exception) -> None:
        self.results["failed"].append({"what": what, "reason": reason(error)})
        self.say(f"failed: {what}: {reason(error)}")

    def _compile(self) -> None:
        self.say("compiling every contender, in parallel")
        compile_all(list(range(len(WIDTHS))), self.quick, self.say)
        try:
            narrow_liger(self.quick)
        except Exception as error:
            self._fail("liger-kernel", error)

    def _accuracy(self) -> None:
        shapes = 20 if self.quick else 60
        self.say(f"accuracy: bf16 against fp32 on {shapes} random routed shapes and the others")
        self._check(accuracy.check_random_shapes(shapes))
        self._check(accuracy.check_others())
        self.results["repeats"] = accuracy.check_repeats()
        bad = [name for name, same in self.results["repeats"].items() if not same]
        self.say(f"bitwise repeatable over 10 runs: {f'not {bad}' if bad else 'all'}")

    def _check(self, checks: Iterable[accuracy.Check]) -> None:
        found = list(checks)
        bad = [check for check in found if not check.ok]
        self.results["out_of_tolerance"] += len(bad)
        # All checks of the 200 shapes would drown the file: the worst and the failed stay.
        worst = sorted(found, key=lambda check: check.whole, reverse=True)[:20]
        self.results["accuracy"] += [asdict(check) for check in dict.fromkeys([*bad[:50], *worst])]
        self.say(f"  {len(found)} tensors compared, {len(bad)} out of tolerance")
        for check in bad[:5]:
            self.say(f"  {check.what}: whole {check.whole:.2e}, worst row {check.row:.2e}")

    def _timings(self) -> None:
        for width in WIDTHS:
            for load in LOADS:
                case = make(width, load)
                for scope, makers in SCOPES.items():
                    self.say(f"timing {scope}: {width}, {load}")
                    self._time(case, scope, self._entered(makers, load))
                del case
                free()
            torch.compiler.reset()

    def _entered(self, makers: dict[str, Maker], load: str) -> dict[str, Maker]:
        left_out: tuple[str, ...] = (*SLOW, COMPILED) if self.quick else ()
        left_out += EQUAL_GROUPS if load != "balanced" else ()
        return {name: make for name, make in makers.items() if name not in left_out}

    def _time(self, case: LayerCase, scope: str, makers: dict[str, Maker]) -> None:
        label = f"{case.width}, {case.load}, {scope}"
        pairs: dict[str, Pair] = {}
        for name, make_pair in makers.items():
            try:
                pairs[name] = make_pair(case)
            except Exception as error:
                self._fail(f"{name} ({label})", error)
        for direction in ("forward", "forward+backward"):
            backward = direction != "forward"
            calls = {name: p.both if backward else p.forward for name, p in pairs.items()}
            found = measure(calls, self.plan, lambda n, e: self._fail(f"{n} ({label})", e))
            pairs = {name: pairs[name] for name in found}
            flops = case.width.flops(case.tokens, backward)
            self._record(case, scope, direction, found, flops)
            self.keep(self.results)
        self._agree(pairs, label)

    def _record(
        self, case: LayerCase, scope: str, direction: str, found: dict[str, Timing], flops: int
    ) -> None:
        dense = found.get(DENSE)
        for name, timing in found.items():
            row = {
                "width": str(case.width),
                "load": case.load,
                "scope": scope,
                "pass": direction,
                "contender": name,
                "tflops": flops / timing.median_ms / 1e9,
                "share_of_dense": dense.median_ms / timing.median_ms if dense else None,
                **asdict(timing),
            }
            self.results["timings"].append(row)

    def _agree(self, pairs: dict[str, Pair], label: str) -> None:
        """All contenders of a scope must have computed the same layer."""
        outputs = {name: pair.output for name, pair in pairs.items() if pair.output}
        if len(outputs) < 2:
            return
        first, *rest = outputs
        with torch.no_grad():
            expected = outputs[first]()
            for name in rest:
                check = accuracy.compare(f"{name} vs {first}: {label}", outputs[name](), expected)
                if not check.ok:
                    self._check([check])

    def _streams(self) -> None:
        self.say("memory-bound operators")
        limit = self._stream(others.copy(), None)
        for stream in others.streams():
            self._stream(stream, limit)

    def _stream(self, stream: others.Stream, limit: float | None) -> float | None:
        found = measure(stream.calls, self.plan, lambda n, e: self._fail(f"{n} {stream.name}", e))
        rate = None
        for name, timing in found.items():
            rate = stream.bytes / timing.median_ms * 1e3
            row = {
                "operator": stream.name,
                "contender": name,
                "bytes": stream.bytes,
                "bytes_per_s": rate,
                "share_of_copy": rate / limit if limit else None,
                **asdict(timing),
            }
            self.results["streams"].append(row)
        return rate

    def _newton_schulz(self) -> None:
        self.say("Newton-Schulz")
        for shape in others.MATRICES:
            calls = others.newton_schulz_calls(shape)
            name = "x".join(map(str, shape))
            found = self._versus("newton_schulz", name, calls)
            for row in found:
                row["tflops_of_torch_form"] = (
                    others.newton_schulz_flops(shape) / row["median_ms"] / 1e9
                )
            del calls
            free()

    def _cross_entropy(self) -> None:
        self.say("cross-entropy")
        rows, width, vocabulary = others.CROSS_ENTROPY
        name = f"N{rows} d{width} V{vocabulary}"
        self._versus("cross_entropy", name, others.cross_entropy_calls())

    def _versus(
        self, section: str, name: str, calls: dict[str, Callable[[], object]]
    ) -> list[dict[str, Any]]:
        """Time our form against torch's; rows with the speed-up over torch."""
        found = measure(calls, self.plan, lambda n, e: self._fail(f"{n} {section} {name}", e))
        base = found.get(others.TORCH)
        rows = [
            {
                "shape": name,
                "contender": contender,
                "speedup": base.median_ms / timing.median_ms if base else None,
                **asdict(timing),
            }
            for contender, timing in found.items()
        ]
        self.results[section] += rows
        return rows


PACKAGES = ("torch", "triton", "liger_kernel", "transformers", "moelstrom")


def environment() -> dict[str, Any]:
    """The machine, the GPU, the versions and the command."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["moelstrom", *sys.argv[1:]],
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
        "gpu": {
            "name": properties.name,
            "compute_units": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        },
        "versions": {
            **{name: _version(name) for name in PACKAGES},
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        },
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def talker() -> Say:
    """Prints each line with the seconds since the start, at once."""
    start = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - start:5.0f} s] {line}", flush=True)
