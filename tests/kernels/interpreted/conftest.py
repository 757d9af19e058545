"""What the tests in Triton's interpreter share."""

from collections.abc import Callable, Iterator

import pytest
import torch

Form = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


@pytest.fixture(autouse=True)
def uninitialized_is_nan() -> Iterator[None]:
    """Memory that no kernel wrote reads as NaN."""
    torch.use_deterministic_algorithms(True)
    # Named by a string: the module makes its settings attributes at run time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)  # noqa: B010
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def agree() -> Callable[..., None]:
    """Holds one form against another: outputs and the gradients of every input.

    `agree(fused, plain, inputs, tolerance)`: `fused` gets the inputs, `plain` the same in fp32.
    """

    def results(form: Form, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        out = form(*leaves)
        outputs = out if isinstance(out, tuple) else (out,)
        g = torch.Generator().manual_seed(0)
        grads = [torch.randn(o.shape, generator=g).to(o.dtype) for o in outputs]
        return *outputs, *torch.autograd.grad(outputs, leaves, grads)

    def check(fused: Form, plain: Form, inputs: list[torch.Tensor], tolerance: float) -> None:
        fast = results(fused, inputs)
        exact = results(plain, [t.float() for t in inputs])
        for a, e in zip(fast, exact, strict=True):
            scale = max(e.detach().abs().max().item() if e.numel() else 0.0, 1.0)
            torch.testing.assert_close(a.float(), e, rtol=tolerance, atol=tolerance * scale)

    return check
