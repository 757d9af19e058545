"""Launches of the grouped kernels on tensors: shapes, descriptors, grids."""

from collections.abc import Iterable
from typing import Any

import torch
import triton
from triton.tools.ragged_tma import create_ragged_descriptor
from triton.tools.tensor_descriptor import TensorDescriptor

from ..forms import target_of
from .configs import KERNELS, adding, config, gathering, launch_constants, weighing
from .plan import TilePlan, plan


class GroupedLayer:
    """The launches of one expert layer: its widths, target and row tiles.

    N rows, D `hidden`, F `width`, E experts; every tensor is contiguous and of one dtype. x has
    the N rows, or N / `copies` that `gate_up` gathers.
    `others` are the caller's further tensors, which with x and gate_up decide the form: the copy
    hardware takes 16-byte aligned rows. `overrides` replaces parts of an operator's config.
    """

    def __init__(
        self,
        x: torch.Tensor,
        gate_up: torch.Tensor,
        offsets: torch.Tensor,
        others: Iterable[torch.Tensor] = (),
        overrides: dict[str, dict[str, Any]] | None = None,
        copies: int = 1,
    ) -> None:
        self.target, self.offsets, self.itemsize = target_of(x), offsets, x.element_size()
        self.rows, self.hidden, self.copies = x.shape[0] * copies, x.shape[1], copies
        self.width = gate_up.shape[1] // 2
        self.overrides = overrides or {}
        lengths = (self.hidden * self.itemsize, self.width * self.itemsize)
        addresses = (t.data_ptr() for t in (x, gate_up, *others))
        aligned = all(n % 16 == 0 for n in (*lengths, *addresses))
        # Ragged descriptors hold at most 2^30 rows.
        self.descriptors = self.target.tensor_descriptors and aligned and self.rows <= 2**30
        self._plans: dict[int, TilePlan] = {}

    def gate_up(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        save: bool,
        order: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden [N, 2F], act [N, F]) of x and [E, 2F, D]; hidden has no rows unless `save`.

        With `order` [N] row i is x[order[i] // copies].
        """
        c = self._config("gate_up")
        c = c if order is None else gathering(c)
        m, n, k = _tile(c)
        hidden = x.new_empty(self.rows if save else 0, 2 * self.width)
        act = x.new_empty(self.rows, self.width)
        kept = hidden.chunk(2, dim=1) if save else (act, act)
        operands = [
            self._block(x, m, k) if order is None else x,
            self._block(weight.view(-1, self.width, self.hidden), 2, n, k),
            *kept,
            act,
            order,
        ]
        sizes = (None if order is None else self.copies, self.hidden, self.width)
        # Blocks by descriptors need no mask.
        even = self.hidden % k == 0 or (self.descriptors and order is None)
        self._over_rows("gate_up", c, operands, sizes, EVEN=even, SAVE=save)
        return hidden, act

    def down(self, act: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[N, D] of act [N, F] and [E, D, F]."""
        return self._linear("down", act, weight, self.width, self.hidden)

    def input_gradient(self, dhidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """[N, D] of d(hidden) [N, 2F] and [E, 2F, D]."""
        return self._linear("input_gradient", dhidden, weight, 2 * self.width, self.hidden)

    def _linear(
        self, operator: str, x: torch.Tensor, weight: torch.Tensor, K: int, N: int
    ) -> torch.Tensor:
        c = self._config(operator)
        m, n, k = _tile(c)
        out = x.new_empty(self.rows, N)
        transposed = operator == "down"
        operands = [
            self._block(x, m, k),
            self._block(weight, 1, *((n, k) if transposed else (k, n))),
            self._ragged(out, m, n // c["SUBTILES"]),
        ]
        even = self.descriptors or (K % k == 0 and (transposed or N % n == 0))
        self._over_rows(operator, c, operands, (K, N), EVEN=even)
        return out

    def activation_gradient(
        self, dy: torch.Tensor, weight: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(d(hidden) [N, 2F], act [N, F]) of dy [N, D], [E, D, F] and hidden [N, 2F]."""
        c = self._config("activation_gradient")
        return self._activation_gradient(c, dy, weight, hidden, None, None)

    def weighted_activation_gradient(
        self,
        dy: torch.Tensor,
        weight: torch.Tensor,
        hidden: torch.Tensor,
        weights: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """d(hidden), weights * act and d(weights) [N] fp32, with dy [N, D] the gradient of the rows
        of y times `weights` [N]."""
        c = weighing(self._config("activation_gradient"))
        columns = triton.cdiv(self.width, c["BLOCK_N"])
        parts = weights.new_empty(columns, self.rows, dtype=torch.float32)
        dhidden, act = self._activation_gradient(c, dy, weight, hidden, weights, parts)
        return dhidden, act, parts.sum(0)

    def _activation_gradient(
        self,
        c: dict[str, Any],
        dy: torch.Tensor,
        weight: torch.Tensor,
        hidden: torch.Tensor,
        weights: torch.Tensor | None,
        parts: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        m, n, k = _tile(c)
        dhidden, act = torch.empty_like(hidden), hidden.new_empty(self.rows, self.width)
        operands = [
            self._block(dy, m, k),
            self._block(weight, 1, k, n),
            hidden,
            *dhidden.chunk(2, dim=1),
            act,
            weights,
            parts,
        ]
        sizes = (None if weights is None else self.rows, self.hidden, self.width)
        whole = self.width % n == 0
        even = self.descriptors or (self.hidden % k == 0 and whole)
        self._over_rows("activation_gradient", c, operands, sizes, EVEN=even, WHOLE=whole)
        return dhidden, act

    def weight_gradient(
        self, operator: str, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor, add: bool
    ) -> None:
        """out[e] = left[e's rows]^T right[e's rows], or its sum with `out` if `add`.

        `left` [N, A], `right` [N, B], `out` [E, A, B].
        """
        c = self._config(operator)
        c = adding(c) if add else c
        m, n, k = _tile(c)
        A, B = left.shape[1], right.shape[1]
        operands = [
            self._ragged(left, k, m),
            self._ragged(right, k, n),
            self._block(out, 1, m, n // c["SUBTILES"]),
        ]
        sizes = (out.shape[0], A, B)
        even = self.descriptors or (A % m == 0 and B % n == 0)
        flags = {"EVEN": even, "ACCUMULATE": add}
        self._run(operator, c, (*operands, self._plan(128).groups, *sizes), flags)

    def _over_rows(
        self, operator: str, c: dict[str, Any], operands: list, sizes: tuple, **flags: Any
    ) -> None:
        tiles = self._plan(c["BLOCK_M"])
        self._run(operator, c, (*operands, tiles.tiles, tiles.count, *sizes), flags)

    def _run(self, operator: str, c: dict[str, Any], arguments: tuple, flags: dict) -> None:
        grid = (self.target.compute_units * c["PROGRAMS"],)
        constants = launch_constants(
            operator, c, self.target, DESCRIPTORS=self.descriptors, **flags
        )
        KERNELS[operator][grid](*arguments, **constants)

    def _config(self, operator: str) -> dict[str, Any]:
        chosen = config(operator, self.target, self.hidden, self.width, self.itemsize)
        return chosen | self.overrides.get(operator, {})

    def _plan(self, block_m: int) -> TilePlan:
        if block_m not in self._plans:
            self._plans[block_m] = plan(self.offsets, self.rows, block_m)
        return self._plans[block_m]

    def _block(self, t: torch.Tensor, *block: int) -> Any:
        if not self.descriptors:
            return t
        return TensorDescriptor(t, list(t.shape), list(t.stride()), list(block))

    def _ragged(self, t: torch.Tensor, *block: int) -> Any:
        return create_ragged_descriptor(t, block) if self.descriptors else t


def _tile(c: dict[str, Any]) -> tuple[int, int, int]:
    return c["BLOCK_M"], c["BLOCK_N"], c["BLOCK_K"]
