"""What a layer says of its work: products, traffic and memory, for sizes known in advance."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Product:
    """[m, k] x [n, k]^T, `count` times in a forward pass."""

    name: str
    m: int
    n: int
    k: int
    count: int = 1

    @property
    def flops(self) -> float:
        """Of one."""
        return 2.0 * self.m * self.n * self.k

    def backward(self) -> tuple["Product", "Product"]:
        """The products of the input's and of the weight's gradient."""
        return (
            Product(f"{self.name}, input gradient", self.m, self.k, self.n, self.count),
            Product(f"{self.name}, weight gradient", self.n, self.k, self.m, self.count),
        )


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of a rank, `count` layers: `rows` tokens' copies in all, spread evenly
    over `experts` SwiGLU MLPs of `width`."""

    rows: int
    hidden: int
    width: int
    experts: int
    count: int = 1

    @property
    def flops(self) -> float:
        """Of one layer's forward pass."""
        return 6.0 * self.rows * self.hidden * self.width


@dataclass(frozen=True)
class Costs:
    """A layer's forward pass over `tokens` in sequences of `length`, on one rank.

    `products`: the dense ones. `experts`: the routed ones. `mixing_flops`: of what mixes tokens
    without a weight (scores and values, states). `moved`: elements read and written outside of
    products and mixing. `saved`: elements that stay for the backward pass. `state`: elements that
    generating one token reads of what the tokens before it left.
    """

    products: tuple[Product, ...] = ()
    experts: tuple[ExpertLayer, ...] = ()
    mixing_flops: float = 0.0
    moved: int = 0
    saved: int = 0
    state: int = 0

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(
            merge(self.products + other.products),
            merge(self.experts + other.experts),
            self.mixing_flops + other.mixing_flops,
            self.moved + other.moved,
            self.saved + other.saved,
            self.state + other.state,
        )


def merge(found: tuple) -> tuple:
    """Equal products (or expert layers) as one, with their counts added."""
    counts: dict = {}
    for one in found:
        key = replace(one, count=0)
        counts[key] = counts.get(key, 0) + one.count
    return tuple(replace(key, count=count) for key, count in counts.items())


def times(costs: Costs, count: int) -> Costs:
    """The work of `count` equal layers."""
    return Costs(
        tuple(replace(p, count=p.count * count) for p in costs.products),
        tuple(replace(e, count=e.count * count) for e in costs.experts),
        costs.mixing_flops * count,
        costs.moved * count,
        costs.saved * count,
        costs.state * count,
    )
