"""Functions that stay exact where the textbook formula divides zero by zero.

Every function of a norm r is written as a function of r**2, with a series near zero and a safe argument on both sides
of each ``where``: the untaken branch can then poison neither the value nor the gradient.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

HALF = (torch.float16, torch.bfloat16)

FEW = 8192
"""Numbers below which an operation costs its launch, not its work."""

SMALL_SQUARE = 1e-4
"""Below this squared argument the series are used; their first neglected term is under 1e-16 there."""


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product over the last axis, ``(..., n)`` and ``(..., n) -> (..., 1)``.

    A reduction over an axis of 3 or 4 costs three times its explicit sum on a CPU, and these are our sizes. A product with a
    column of ones is as quick as the sum and one kernel instead of three; it is used where nobody has allowed matrix products
    fewer digits (autocast, ``set_float32_matmul_precision``).
    """
    product = x * y
    if not 2 <= product.shape[-1] <= 4:
        return product.sum(-1, keepdim=True)
    if not torch.compiler.is_compiling():  # a compiler fuses, and its sizes may be symbols
        weight = _by_product(product)
        if weight is not None:
            return torch.nn.functional.linear(product, weight[0])
        if product.numel() < FEW:
            return product.sum(-1, keepdim=True)
    first, *rest = product.split(1, -1)
    return functools.reduce(torch.add, rest, first)


def _by_product(x: Tensor) -> tuple[Tensor, ...] | None:
    """Weights of a matrix product in place of a sum over the last axis, None where it is not worth it or loses digits."""
    weight = _WEIGHTS.get((x.shape[-1], x.dtype))
    return weight if x.device.type == "cpu" and products_keep_digits() else None


def products_keep_digits() -> bool:
    """Whether nobody has allowed matrix products on a CPU fewer digits than their numbers have."""
    return torch.get_float32_matmul_precision() == "highest" and not torch.is_autocast_enabled("cpu")


def to_unit(x: Tensor) -> Tensor:
    """``x`` of a length that is 1 but for round-off, brought to 1 by a step of Newton's method, :math:`x (3 - |x|^2) / 2`."""
    weight = None if torch.compiler.is_compiling() else _by_product(x)
    if weight is not None:
        return x * torch.nn.functional.linear(x * x, weight[1], weight[2])
    return x * torch.rsub(dot(x, x), 1.5, alpha=0.5)


def safe_norm(x: Tensor, eps: float = 1e-30) -> Tensor:
    """Euclidean norm over the last axis, ``(..., n) -> (..., 1)``, with gradient 0 (not NaN) at x = 0."""
    squared = (x * x).sum(-1, keepdim=True)
    is_zero = squared <= eps
    return torch.where(is_zero, 0.0, squared.where(~is_zero, 1.0).sqrt())


def sinc_of_square(squared: Tensor) -> Tensor:
    """sin(r) / r as a function of r**2 of any shape, smooth at r = 0."""
    is_small = squared < SMALL_SQUARE
    r = squared.where(~is_small, 1.0).sqrt()
    series = 1 - squared / 6 * (1 - squared / 20 * (1 - squared / 42))
    return torch.where(is_small, series, r.sin() / r)


def cosc_of_square(squared: Tensor) -> Tensor:
    """(1 - cos r) / r**2 as a function of r**2 of any shape, smooth at 0; 2 sin(r/2)**2 keeps the digits that 1 - cos loses."""
    half = sinc_of_square(squared / 4)
    return 0.5 * half * half


def cot_slope(squared: Tensor) -> Tensor:
    """(r cot r - 1) / r**2 as a function of r**2 of any shape, -1/3 at 0: how the volume factor sin(r) / r falls, per r**2."""
    is_small = squared < 0.1
    q = torch.where(is_small, squared, 0.0)
    series = -(1 / 3 + q * (1 / 45 + q * (2 / 945 + q * (1 / 4725 + q * (2 / 93555 + q * (1382 / 638512875))))))
    safe = squared.where(~is_small, 1.0)
    r = safe.sqrt()
    return torch.where(is_small, series, (r / r.tan() - 1) / safe)


def coth_slope(squared: Tensor) -> Tensor:
    """(r coth r - 1) / r**2 as a function of r**2 of any shape, 1/3 at 0."""
    is_small = squared < 0.1
    q = torch.where(is_small, squared, 0.0)
    series = 1 / 3 - q * (1 / 45 - q * (2 / 945 - q * (1 / 4725 - q * (2 / 93555 - q * (1382 / 638512875)))))
    safe = squared.where(~is_small, 1.0)
    r = safe.sqrt()
    return torch.where(is_small, series, (r / r.tanh() - 1) / safe)


def cos_of_square(squared: Tensor) -> Tensor:
    """cos(r) as a function of r**2 of any shape, smooth at r = 0."""
    is_small = squared < SMALL_SQUARE
    series = 1 - squared / 2 * (1 - squared / 12 * (1 - squared / 30 * (1 - squared / 56)))
    return torch.where(is_small, series, squared.where(~is_small, 1.0).sqrt().cos())


def tiny_square(dtype: torch.dtype) -> float:
    """What :func:`smooth_norm` adds under its root: so small that 1 / r**3 of the root r is still finite."""
    return _TINY_SQUARE[dtype]


_TINY_SQUARE = {dtype: torch.finfo(dtype).tiny ** 0.63 for dtype in (*HALF, torch.float32, torch.float64)}


def _weights(n: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    ones = torch.ones(1, n, dtype=dtype, device="cpu")
    return ones, -0.5 * ones, 1.5 * ones[0, :1], _TINY_SQUARE[dtype] * ones[0, :1]


_WEIGHTS = {(n, dtype): _weights(n, dtype) for n in (2, 3, 4) for dtype in (torch.float32, torch.float64)}
"""Of :func:`_by_product`: the sum, minus half of it, and what :func:`to_unit` and :func:`smooth_norm` add."""


def smooth_norm(x: Tensor) -> Tensor:
    r"""The norm :math:`\sqrt{|x|^2 + \epsilon}` over the last axis, ``(..., n) -> (..., 1)``: never 0 (1e-12 in float32, 1e-97
    in float64).

    A quotient such as sin(r) / r of it needs no series: its value is 1 to round-off at x = 0, and in a product with x
    its first and second derivatives are finite. Three kernels, where a guarded division has ten.
    """
    return (dot(x, x) + tiny_square(x.dtype)).sqrt()


def atan2_over_sine(sine: Tensor, cosine: Tensor) -> Tensor:
    """atan2(s, c) / s for s >= 0 of any shape: the factor that turns a vector of length sin(a) into one of length a.

    Series in s / c where s is small and c > 0. At s = 0, c < 0 (angle pi) the factor is infinite: callers treat that
    direction-less case themselves, and this returns a finite number there.
    """
    is_small = (sine * sine < SMALL_SQUARE * cosine * cosine) & (cosine > 0)
    ratio = sine / torch.where(is_small, cosine, 1.0)
    q = ratio * ratio
    series = (1 - q * (1 / 3 - q * (1 / 5 - q * (1 / 7 - q / 9)))) / torch.where(is_small, cosine, 1.0)
    safe_sine = torch.where(is_small | (sine <= 0), 1.0, sine)
    general = torch.atan2(safe_sine, torch.where(is_small, 1.0, cosine)) / safe_sine
    return torch.where(is_small, series, general)


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 without cancellation at either end (Maechler 2012)."""
    is_small = x < 0.6931471805599453
    low = torch.where(is_small, x, 1.0)
    high = torch.where(is_small, 1.0, x)
    return torch.where(is_small, (-torch.expm1(-low)).log(), torch.log1p(-torch.exp(-high)))


def upcast(x: Tensor) -> Tensor:
    """float16 and bfloat16 in float32, everything else unchanged: geometry is never computed in half precision."""
    return x.float() if x.dtype in HALF else x


def in_full_precision(method: F) -> F:
    """Make a method of points and tangents compute in one dtype, float32 or better, and answer in the one it was given.

    float16 and bfloat16 arguments are upcast, different dtypes promoted, and autocast is off inside: half precision has 3
    digits, geometry needs 6. The shapes of points are checked.

    Raises:
        ValueError: an argument is no point of the manifold by its shape.
    """

    other = _other_point(method)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        first = args[0]
        if first.shape[first.ndim - self.event_ndim :] != self.event_shape:
            check_event(self, method.__name__, first)
        if other:
            second = args[other]
            if second.shape[second.ndim - self.event_ndim :] != self.event_shape:
                check_event(self, method.__name__, second)
        if torch.is_autocast_enabled(first.device.type):
            with torch.autocast(first.device.type, enabled=False):
                return wrapped(self, *args, **options)
        dtype = first.dtype
        if dtype not in HALF:
            for a in args:
                if isinstance(a, Tensor) and a.dtype is not dtype:
                    break
            else:
                return method(self, *args, **options)
        return _in_one_dtype(method, self, args, options)

    return _with_own_code(wrapped, method)


def in_double_precision(method: F) -> F:
    """:func:`in_full_precision` with float32 computed in float64, where the device has it: for coordinates that grow as
    exponentials of the distance."""
    other = _other_point(method)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        first = args[0]
        if first.shape[first.ndim - self.event_ndim :] != self.event_shape:
            check_event(self, method.__name__, first)
        if other:
            second = args[other]
            if second.shape[second.ndim - self.event_ndim :] != self.event_shape:
                check_event(self, method.__name__, second)
        if all(a.dtype == torch.float64 for a in args if isinstance(a, Tensor)):
            return method(self, *args, **options)
        with torch.autocast(first.device.type, enabled=False):
            return _in_one_dtype(
                method, self, args, options, torch.float32 if first.device.type == "mps" else torch.float64
            )

    return _with_own_code(wrapped, method)


def checks_points(method: F) -> F:
    """Check the shapes of points, for methods that need nothing else of :func:`in_full_precision`.

    Raises:
        ValueError: an argument is no point of the manifold by its shape.
    """
    other = _other_point(method)

    @functools.wraps(method)
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        first = args[0]
        if first.shape[first.ndim - self.event_ndim :] != self.event_shape:
            check_event(self, method.__name__, first)
        if other:
            second = args[other]
            if second.shape[second.ndim - self.event_ndim :] != self.event_shape:
                check_event(self, method.__name__, second)
        return method(self, *args, **options)

    return _with_own_code(wrapped, method)


def _other_point(method: Callable[..., Any]) -> int:
    """Which argument of a method is a second point, 0 if none is."""
    return {"log": 1, "dist": 1, "geodesic": 1, "interpolate": 1, "transport": 2}.get(method.__name__, 0)


def _with_own_code(wrapped: Any, method: Any) -> Any:
    # torch.compile keeps at most 8 variants per code object: every method needs one of its own.
    wrapped.__code__ = wrapped.__code__.replace(co_name=method.__name__)
    return wrapped


def check_event(space: Any, method: str, x: Tensor) -> None:
    """Raise unless the last axes of ``x`` are those of a point of ``space``."""
    if tuple(x.shape[max(0, x.ndim - space.event_ndim) :]) != tuple(space.event_shape):
        wanted = ", ".join(map(str, space.event_shape))
        raise ValueError(f"{space}.{method}: points need shape (..., {wanted}), got {tuple(x.shape)}")


def _in_one_dtype(
    method: Callable[..., Any],
    space: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    least: torch.dtype = torch.float32,
) -> Any:
    # As everywhere in torch, a scalar tensor does not raise the precision of a batch.
    tensors = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
    given = [a.dtype for a in tensors if a.ndim] or [a.dtype for a in tensors]
    dtype = functools.reduce(torch.promote_types, given)
    inside = torch.promote_types(dtype, least)
    out = method(space, *(a.to(inside) if isinstance(a, Tensor) else a for a in args), **options)
    made = [o if o.dtype == torch.bool else o.to(dtype) for o in (out if isinstance(out, tuple) else (out,))]
    return tuple(made) if isinstance(out, tuple) else made[0]


def polar_angle(sine: Tensor, cosine: Tensor) -> Tensor:
    """atan2(s, c) for s > 0, of any shape.

    Under ``torch.compile`` on a CPU in the form 2 atan(s / (1 + c)), reflected for c < 0: the compiler has a vector
    instruction for atan and none for atan2, and one scalar call makes the whole kernel scalar (8 times slower).
    """
    if not (torch.compiler.is_compiling() and sine.device.type == "cpu"):
        return torch.atan2(sine, cosine)
    is_obtuse = cosine < 0
    acute = 2 * torch.atan(sine / ((sine * sine + cosine * cosine).sqrt() + torch.where(is_obtuse, -cosine, cosine)))
    return torch.where(is_obtuse, math.pi - acute, acute)


def push_along(function: Callable[..., Any], points: tuple[Tensor, ...], moves: tuple[Tensor, ...]) -> tuple[Any, Any]:
    """A function's value at ``points`` and its derivatives along D directions at once, by forward mode.

    Args:
        function: of as many tensors as there are points; returns a tensor or a tuple of them.
        points: where.
        moves: ``(D, *shape of the point)`` for each point.

    Returns:
        The value, and derivatives with a new first axis D. The value is computed once, not D times.
    """

    def along(*move: Tensor) -> Any:
        return torch.func.jvp(function, points, move)

    out_dims: Any = (None, 0)
    return torch.func.vmap(along, out_dims=out_dims)(*moves)
