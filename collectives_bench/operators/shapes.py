"""What several operators share: bus-bandwidth factors and the elements of a rank's buffers."""

IN_PLACE, BOTH_FORMS = (True,), (False, True)


def every_other(n: int) -> float:
    """Bus factor where a rank's own part stays: (n - 1) / n."""
    return (n - 1) / n


def one(n: int) -> float:
    """Bus factor where the whole buffer goes over a link once."""
    return 1.0


def whole(n: int, count: int, in_place: bool) -> int:
    """One buffer."""
    return count


def parts(n: int, count: int, in_place: bool) -> int:
    """All parts, and one rank's own beside them unless it lies among them."""
    return n * count + (0 if in_place else count)


def exchange(n: int, count: int, in_place: bool) -> int:
    """All parts to send, and as many to receive."""
    return 2 * n * count
