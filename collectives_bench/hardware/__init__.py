"""What one device does alone: memory, matrix products, experts, attention, host copies.

The same code runs on a CPU, CUDA and ROCm; `run.run` measures, `summary.summarise` reads. A kind of
measurement is a file here and a line below: `probe.ProbeKind` says what such a file defines, as
`KIND`. Another package adds one by an entry point in the group `moelstrom.probes`.
"""

from ... import Registry

PROBES = Registry(
    "probes",
    __name__,
    {
        "memory": "memory:KIND",
        "gemm": "gemm:KIND",
        "experts": "experts:KIND",
        "attention": "attention:KIND",
        "copy": "copies:KIND",
    },
)
"""In the order of measurement; a summary may read those of the kinds before its own."""
