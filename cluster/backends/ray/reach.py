"""Which nodes answer now. Ray takes half a minute and more to declare a silent node dead."""

import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

TIMEOUT_S = 1.0
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What an HTTP/2 client says first (RFC 9113, 3.4); a raylet's gRPC server answers it."""


def unreachable(raylets: Mapping[str, tuple[str, int]]) -> frozenset[str]:
    """Ids of the nodes whose raylet, at its host and port, gives no answer in `TIMEOUT_S`."""
    if not raylets:
        return frozenset()
    with ThreadPoolExecutor(min(64, len(raylets))) as pool:
        answers = pool.map(answers_at, raylets.values())
        return frozenset(node for node, ok in zip(raylets, answers, strict=True) if not ok)


def answers_at(address: tuple[str, int]) -> bool:
    """Whether an HTTP/2 server speaks there: a stopped process's kernel would still connect."""
    try:
        with socket.create_connection(address, timeout=TIMEOUT_S) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.sendall(HELLO)
            return bool(connection.recv(1))
    except OSError:
        return False
