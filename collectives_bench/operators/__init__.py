"""The collectives that a sweep measures: a file each, and a line here.

`base.Operator` says what such a file defines, as `OPERATOR`. Another package adds one by an entry
point in the group `moelstrom.collectives`.
"""

from ... import Registry

OPERATORS = Registry(
    "collectives",
    __name__,
    {
        "all_reduce": "all_reduce:OPERATOR",
        "reduce_scatter": "reduce_scatter:OPERATOR",
        "all_gather": "all_gather:OPERATOR",
        "broadcast": "broadcast:OPERATOR",
        "reduce": "reduce:OPERATOR",
        "gather": "gather:OPERATOR",
        "scatter": "scatter:OPERATOR",
        "all_to_all": "all_to_all:OPERATOR",
        "all_to_all_v": "all_to_all_v:OPERATOR",
        "send_recv": "send_recv:OPERATOR",
        "barrier": "barrier:OPERATOR",
    },
)
