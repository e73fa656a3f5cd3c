r"""Steps of a controlled size for likelihoods: Dormand & Prince's pair of orders 5 and 4 in normal coordinates."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from manifoldflow.state import State, fields, first_tensor, like


class Adaptive(NamedTuple):
    """Steps of a controlled size.

    Attributes:
        rtol, atol: bounds on the estimated error of a step, in lengths of tangents and nats.
        most: number of steps at which the solver gives up.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    most: int = 2000


# Dormand & Prince 1980, the pair of orders 5 and 4. Its seventh stage is the first of the next step.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
)
_FIFTH = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def log_density_change_adaptive(
    spaces: Any,
    x: State,
    start: float,
    end: float,
    control: Adaptive,
    take: Callable[[State, Tensor], tuple[State, Tensor]],
) -> tuple[State, Tensor]:
    r"""As :func:`log_density_change`, with steps that keep the estimated error of position and log-density in bounds.

    Dormand-Prince 5(4) in normal coordinates around the current point, where both solutions of the pair lie in one flat
    space, so the error estimate needs no distance on the manifold and keeps its order. One step size for the batch;
    its control reads numbers from the device at every step.

    Raises:
        FloatingPointError: the step size fell to nothing, or ``control.most`` steps were not enough.
    """
    reference = first_tensor(x)
    total = torch.zeros(reference.shape[0], dtype=reference.dtype, device=reference.device)

    def time(value: float) -> Tensor:
        return torch.tensor(value, dtype=reference.dtype, device=reference.device)

    def pull(w: State, y: State, v: State) -> State:
        view = fields(x)
        made = {n: fields(spaces)[n].dexp_inv(view[n], fields(w)[n], fields(v)[n]) for n in view}
        return like({n: made[n] for n in view}, y)

    t, h = start, (end - start) / 50
    first = take(x, time(t))
    for _ in range(control.most):
        h = math.copysign(min(abs(h), abs(end - t)), end - start)
        slopes: list[tuple[State, Tensor]] = [first]
        for node, weights in zip(_NODES[1:], _STAGES, strict=True):
            w = _weighted([s for s, _ in slopes], weights, h)
            y = _exp(spaces, x, w)
            v, div = take(y, time(t + node * h))
            slopes.append((pull(w, y, v), div))
        w = _weighted([s for s, _ in slopes], _FIFTH, h)
        y = _exp(spaces, x, w)
        gained = h * sum(b * d for b, (_, d) in zip(_FIFTH, slopes, strict=True) if b)
        last = take(y, time(t + h))
        slopes.append((pull(w, y, last[0]), last[1]))
        off = _weighted([s for s, _ in slopes], _ERROR, h)
        off_log = h * sum(b * d for b, (_, d) in zip(_ERROR, slopes, strict=True) if b)
        size = _lengths(w)
        bound = control.atol + control.rtol * size
        bound_log = control.atol + control.rtol * torch.as_tensor(gained).abs()
        ratio = float(
            torch.stack(
                [(_lengths(off) / bound).square().mean().sqrt(), (off_log / bound_log).square().mean().sqrt()]  # type: ignore[operator]
            ).max()
        )
        if ratio <= 1:
            x, t, total, first = y, t + h, total + gained, last
            if abs(end - t) < 1e-9:
                return x, total
        factor = 0.9 * max(ratio, 1e-6) ** -0.2 if math.isfinite(ratio) else 0.2
        h *= min(5.0, max(0.2, factor))
        if abs(h) < 1e-7:
            break
    raise FloatingPointError(
        f"the adaptive solver stopped at t = {t:.6f} with a step of {abs(h):.1e}: the field is too stiff for "
        f"rtol={control.rtol:g}, atol={control.atol:g}; loosen them or use steps= with a fixed method"
    )


def _weighted(tangents: Sequence[State], weights: Sequence[float], h: float) -> State:
    out = {}
    for name in fields(tangents[0]):
        terms = [(h * b) * fields(v)[name] for b, v in zip(weights, tangents, strict=False) if b]
        out[name] = torch.stack(terms).sum(0)
    return like(out, tangents[0])


def _exp(spaces: Any, x: State, u: State) -> State:
    return like({n: fields(spaces)[n].exp(v, fields(u)[n]) for n, v in fields(x).items()}, x)


def _lengths(u: State) -> Tensor:
    """Length of the tangents of a sample, all fields together, ``(B,)``."""
    return torch.stack([v.flatten(1).square().sum(-1) for v in fields(u).values()]).sum(0).sqrt()
