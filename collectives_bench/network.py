"""A network as its fits describe it: the time of any collective, also at counts never measured.

Between measured and asked-for counts of ranks the fit's two parts scale apart. Latency follows the
hops: n - 1 for rings and pairwise exchanges, log2 n for trees. Bytes follow the bus-bandwidth
factor, at the bus bandwidth measured (within a host by the law that `laws` names). At its own count
of ranks a fit is corrected by its residuals, so that measured sizes come out as measured.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from .. import UserError
from .fit import Fit
from .laws import BANDWIDTH, LATENCY, fit_laws
from .operators import OPERATORS

EVEN = (None, "balanced")
PLACES = {"host": "within a host", "rail": "between hosts", "hosts": "between hosts"}
Laws = Mapping[str, Callable[[float], float]]


class MissingFitError(UserError):
    """The report lacks a measurement that the question needs; the message names it."""


@dataclass(frozen=True)
class Group:
    """`size` ranks, `local` of them on each host, while `at_once` such groups run together."""

    size: int
    local: int
    at_once: int = 1


class Network:
    """The fits of a report, asked for times."""

    def __init__(self, fits: Iterable[Fit]) -> None:
        self._fits = [f for f in fits if _hops(f.op) and f.size > 1 and f.load in EVEN]

    def seconds(self, op: str, size: float, group: Group) -> float:
        """Time of `op` over `size` bytes (nccl-tests' size; per rank in an all-to-all).

        A group that spans hosts reduces within each, then between them on one rail each, then
        gathers, where rails were measured; else the fit over whole hosts is scaled.
        MissingFitError names the measurement that is missing.
        """
        if group.size == 1 or size <= 0:
            return 0.0
        if group.local == group.size:
            return self._scaled(op, size, group)
        if op.startswith("all_to_all"):
            return self._exchange(op, size, group)
        rail = Group(group.size // group.local, 1, group.at_once * group.local)
        if group.local > 1 and any(f.op == op and _kind(f) == "rail" for f in self._fits):
            return self._hierarchical(op, size, group, rail)
        return self._scaled(op, size, group)

    def _hierarchical(self, op: str, size: float, group: Group, rail: Group) -> float:
        inside = Group(group.local, group.local, group.at_once)
        first, last = ("reduce_scatter", "all_gather") if op == "all_reduce" else (op, None)
        total = self.seconds(first, size, inside) + self.seconds(op, size / group.local, rail)
        return total + (self.seconds(last, size, inside) if last else 0.0)

    def _exchange(self, op: str, size: float, group: Group) -> float:
        """An all-to-all between hosts: the bytes that leave a host, while the others stay."""
        f = self._nearest(op, group)
        sent = f.beta * (f.size - f.local) / f.size
        leaving = size * (group.size - group.local) / group.size
        outside = self._latency(f, group.size) + leaving / sent
        outside *= _correction(f, size * f.size / group.size)
        inside = Group(group.local, group.local, group.at_once)
        if group.local == 1 or not self._candidates(op, inside):
            return outside
        return max(outside, self.seconds(op, size * group.local / group.size, inside))

    def _scaled(self, op: str, size: float, group: Group) -> float:
        f = self._nearest(op, group)
        law = BANDWIDTH[self._law(f, BANDWIDTH, "nvswitch") if f.within_host else "nvswitch"]
        rate = f.busbw * law(group.size) / law(f.size)
        line = self._latency(f, group.size) + size * OPERATORS[op].factor(group.size) / rate
        # A rank's messages are size / n long: the same part of the curve.
        return line * _correction(f, size * f.size / group.size)

    def _latency(self, f: Fit, size: int) -> float:
        law = LATENCY[self._law(f, LATENCY, _hops(f.op))]
        return f.alpha_s * law(size) / law(f.size)

    def _law(self, f: Fit, laws: Laws, default: str) -> str:
        """The law that the fits of this kind at other counts of ranks follow."""
        alike = [
            g
            for g in self._fits
            if (g.op, g.dtype, g.in_place, g.load) == (f.op, f.dtype, f.in_place, f.load)
            and (_kind(g), g.at_once) == (_kind(f), f.at_once)
        ]
        pairs = [(g.size, g.alpha_s if laws is LATENCY else g.busbw) for g in alike]
        pairs = [pair for pair in pairs if pair[1] > 0]
        if len({count for count, _ in pairs}) < 2:
            return default
        return fit_laws([n for n, _ in pairs], [value for _, value in pairs], laws)[0].name

    def _candidates(self, op: str, group: Group) -> list[Fit]:
        """Fits of `op` in groups that lie over the hosts as `group` does."""
        ops = [op, "all_to_all"] if op == "all_to_all_v" else [op]
        kinds = [_kind(group)] if _kind(group) == "host" else [_kind(group), "rail", "hosts"]
        for kind, name in ((kind, name) for kind in kinds for name in ops):
            found = [f for f in self._fits if f.op == name and _kind(f) == kind]
            if found:
                return found
        return []

    def _nearest(self, op: str, group: Group) -> Fit:
        found = self._candidates(op, group)
        if not found:
            raise MissingFitError(
                f"report: no fit of {op} {PLACES[_kind(group)]}; measure it there, over three "
                "sizes or more"
            )
        return min(found, key=lambda f: _distance(f, group))


def _hops(op: str) -> str:
    """The operator's own law of latency; empty where nothing is predicted from it, as of one that
    this installation does not know."""
    return (OPERATORS[op].hops or "") if op in OPERATORS else ""


def _kind(group: Group | Fit) -> str:
    if group.local == group.size:
        return "host"
    return "rail" if group.local == 1 else "hosts"


def _distance(f: Fit, group: Group) -> tuple[float, float, bool, bool]:
    size, at_once = abs(math.log(f.size / group.size)), abs(math.log(f.at_once / group.at_once))
    return size, at_once, f.dtype not in ("fp32", "float32"), f.in_place


def _correction(f: Fit, size: float) -> float:
    """Measured time over the line's at `size` bytes, between the measured sizes by logarithms."""
    sizes = np.log([s for s, _ in f.points])
    off = np.log([t / f.seconds(s) for s, t in f.points])
    return float(np.exp(np.interp(math.log(size), sizes, off)))
