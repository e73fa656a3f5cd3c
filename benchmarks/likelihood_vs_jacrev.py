"""How many exact likelihoods a second, beside a hand-written loop with torch.func.jacrev, the same network and steps?

The peer is what people write today: at every stage of the integrator ``vmap(jacrev(...))`` of the field, in the coordinates
of the surrounding space, projected onto the manifold first; the velocity comes with it (``has_aux``), so it is not computed
twice. Both integrate backward from the same points with the classical Runge-Kutta method (Euler in the last rows) and the
same number of steps. Errors are the largest differences from 400 steps of ours in float64 with a divergence at every step.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import jacrev, vmap

import manifoldflow as mf
from benchmarks._bench import OURS, Report, compare, run

STEPS = 100
BATCH = 128


def jacrev_log_prob(flow: mf.Flow, x: Tensor, steps: int, method: str) -> Tensor:
    """The loop by hand: Runge-Kutta in the surrounding space with a projection, the trace of jacrev at every stage."""
    space, net = flow.spaces, flow.model
    is_rotation = isinstance(space, mf.SO3)

    def field(point: Tensor, t: Tensor) -> Tensor:
        point = space.project(point)
        v = net(point.unsqueeze(0), t.expand(1)).squeeze(0)
        # The ambient velocity of a rotation is R hat(w); its ambient trace is the divergence, as that of a sphere's field.
        return point @ _hat(v) if is_rotation else v

    def with_trace(point: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        def twice(p: Tensor) -> tuple[Tensor, Tensor]:
            v = field(p, t)
            return v, v

        jacobian, v = jacrev(twice, has_aux=True)(point)
        numbers = point.numel()
        return v, jacobian.reshape(numbers, numbers).diagonal().sum()

    look = vmap(with_trace, in_dims=(0, None))
    total = torch.zeros(len(x), dtype=x.dtype)
    h = -1.0 / steps
    for i in range(steps):
        t = torch.tensor(1 + i * h, dtype=x.dtype)
        k1, d1 = look(x, t)
        if method == "euler":
            x, total = space.project(x + h * k1), total + h * d1
            continue
        k2, d2 = look(x + 0.5 * h * k1, t + 0.5 * h)
        k3, d3 = look(x + 0.5 * h * k2, t + 0.5 * h)
        k4, d4 = look(x + h * k3, t + h)
        x = space.project(x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
        total = total + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return total - space.log_volume


def _hat(w: Tensor) -> Tensor:
    zero = torch.zeros_like(w[0])
    return torch.stack(
        [torch.stack([zero, -w[2], w[1]]), torch.stack([w[2], zero, -w[0]]), torch.stack([-w[1], w[0], zero])]
    )


def trained_like(space: Any) -> mf.Flow:
    """A 5 x 256 network with a field of the size of a trained one."""
    torch.manual_seed(0)
    net = mf.nn.TangentMLP(space, 256, 5).requires_grad_(False)
    net.net[-1].weight *= 8
    return mf.Flow(space, model=net).eval()


def body(report: Report, budget: float) -> None:
    cases = [
        ("S^2", mf.Sphere(2), 1.0),
        ("T^7", mf.Torus(7, 2 * math.pi), 5.0),
        ("SO(3)", mf.SO3(), 1.0),
        ("S^7", mf.Sphere(7), 5.0),
    ]
    for name, space, target in cases:
        flow = trained_like(space)
        x = space.sample_uniform((BATCH,), generator=torch.Generator().manual_seed(0))
        exact = trained_like(space).double().log_prob(space.project(x.double()), steps=400, trace_every=1)
        for method in ("rk4", "euler"):
            with torch.no_grad():
                candidates: dict[str, Callable[[], Any]] = {
                    OURS: lambda f=flow, x=x, m=method: f.log_prob(x, steps=STEPS, method=m),
                    "jacrev loop": lambda f=flow, x=x, m=method: jacrev_log_prob(f, x, STEPS, m),
                }
                error = {n: float((c() - exact).abs().max()) for n, c in candidates.items()}
                goal = target if method == "rk4" else None
                case = f"{name} {method}, {STEPS} steps, B={BATCH}"
                report.add(compare(case, candidates, error=error, target=goal, exact=math.inf, budget=2 * budget))


if __name__ == "__main__":
    run(__doc__.splitlines()[0], body)
