"""How bandwidth grows with the ranks that take part: the wiring of a node, named from a sweep.

Per-GPU bus bandwidth over n ranks (arXiv 2511.17127, section on collectives): a mesh of xGMI links
gives (n - 1) B_link, because a rank uses only the links to ranks that take part; NVSwitch gives
B_max at every n. Ranks that share one memory bus, as on a CPU, divide it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from .fit import Fit, fit_report
from .schema import BenchReport

BANDWIDTH: Mapping[str, Callable[[float], float]] = {
    "xgmi": lambda n: n - 1,
    "nvswitch": lambda n: 1.0,
    "shared_bus": lambda n: 1 / n,
}
"""Bus bandwidth per rank over n, in units of the law's rate."""
LATENCY: Mapping[str, Callable[[float], float]] = {
    "ring": lambda n: n - 1,
    "tree": lambda n: math.log2(n),
    "flat": lambda n: 1.0,
}
"""Latency over n, in units of the law's rate."""
SENTENCES = {
    "xgmi": "a mesh of links, (n - 1) x {rate:.4g} GB/s",
    "nvswitch": "a switch, {rate:.4g} GB/s at every n",
    "shared_bus": "one shared bus, {rate:.4g} GB/s / n",
}
CLEAR = 0.5
"""A law is clear when its residual is at most this share of the next one's."""


@dataclass(frozen=True)
class Law:
    """A one-parameter law; residuals are |law / measured - 1| over the counts of ranks."""

    name: str
    rate: float
    residual_median: float
    residual_worst: float


@dataclass(frozen=True)
class NamedLaw:
    """The law that fits one operation's bus bandwidth within a host best, and the others."""

    op: str
    dtype: str
    in_place: bool
    counts: list[int]
    busbw: list[float]
    best: str
    clear: bool
    text: str
    laws: list[Law]


def fit_laws(
    counts: list[int], values: list[float], laws: Mapping[str, Callable[[float], float]]
) -> list[Law]:
    """Fit each law's rate to `values` over `counts` (relative least squares), best first."""
    measured = np.array(values)
    fits = []
    for name, law in laws.items():
        share = np.array([law(n) for n in counts]) / measured
        rate = float(share.sum() / (share @ share))
        off = np.abs(rate * share - 1)
        fits.append(Law(name, rate, float(np.median(off)), float(off.max())))
    return sorted(fits, key=lambda law: law.residual_worst)


def name_laws(report: BenchReport, fits: list[Fit] | None = None) -> list[NamedLaw]:
    """The law of every operation that was measured within a host, alone, at two counts or more."""
    found: dict[tuple[str, str, bool], dict[int, list[float]]] = defaultdict(dict)
    for f in fit_report(report) if fits is None else fits:
        alone = f.at_once == 1 and f.load is None and f.op != "send_recv"
        if alone and f.within_host and f.size > 1:
            found[f.op, f.dtype, f.in_place].setdefault(f.size, []).append(f.busbw)
    return [_name(key, by_count) for key, by_count in found.items() if len(by_count) > 1]


def _name(key: tuple[str, str, bool], by_count: dict[int, list[float]]) -> NamedLaw:
    counts = sorted(by_count)
    busbw = [float(np.median(by_count[n])) for n in counts]
    laws = fit_laws(counts, busbw, BANDWIDTH)
    best, second = laws[0], laws[1]
    clear = best.residual_worst <= CLEAR * second.residual_worst
    sentence = SENTENCES[best.name].format(rate=best.rate / 1e9)
    doubt = "" if clear else f"; {second.name} fits nearly as well: measure more counts of ranks"
    text = f"{key[0]} {key[1]}: {sentence} (within {best.residual_worst:.0%}){doubt}"
    return NamedLaw(*key, counts, busbw, best.name, clear, text, laws)
