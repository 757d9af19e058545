"""What `kernels tune` measured, beside what the roofline model says of the same configs.

Run as `python -m moelstrom.kernels.bench.modelled TUNE.json [OUT.json]`; needs no GPU.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..compile import compile_variant, facts
from ..grouped_mlp.configs import variants
from ..roofline import Estimate, Measurement, Ratio, compare, estimate
from ..targets import Target, find
from .candidates import fastest


def measurements(tuned: dict[str, Any]) -> list[Measurement]:
    """The fastest config of each operator and width in a record of `kernels tune`."""
    return [
        Measurement(f"grouped_mlp.{row['operator']}", row["key"], best["tflops"])
        for row in tuned["timings"]
        if (best := fastest(row))
    ]


def estimates(target: Target, keys: set[str]) -> list[Estimate]:
    """The model's rates for the committed configs of those shape classes."""
    chosen = [
        v
        for v in variants(target)
        if v.tiles and v.key in keys and not v.constexprs.get("ACCUMULATE")
    ]
    modelled = (estimate(v, facts(compile_variant(v, target), target), target) for v in chosen)
    return [found for found in modelled if found]


def beside(tuned: dict[str, Any]) -> tuple[list[Ratio], float]:
    """Measured over modelled, and the geometric mean."""
    measured = measurements(tuned)
    return compare(measured, estimates(find(tuned["target"]), {m.key for m in measured}))


def main(source: str, out: str | None = None) -> None:
    """Print the table; write the record to `out`."""
    tuned = json.loads(Path(source).read_text(encoding="utf-8"))
    ratios, mean = beside(tuned)
    for r in ratios:
        print(f"{r.operator:32} {r.key:12} {r.measured:5.0f} of {r.expected:5.0f} = {r.ratio:.2f}")
    print(f"geometric mean {mean:.2f}")
    if out:
        rows = [{**asdict(r), "ratio": r.ratio} for r in ratios]
        record = {
            **{key: tuned[key] for key in ("gpu", "versions", "target")},
            "unit": "TFLOP/s",
            "rows": rows,
            "geometric_mean": mean,
        }
        Path(out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
