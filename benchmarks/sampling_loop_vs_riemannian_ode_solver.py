"""What does the sampling loop itself cost per step, and is it right on every time grid, beside RiemannianODESolver?

| | |
|---|---|
| space, batch | S^2, B = 1,024 |
| network | a stored tensor of ambient vectors, projected to the tangent space by its wrapper, as both libraries ask of users |
| steps | 100 on [0, 1] |

Target: time per Euler step no more than flow_matching's. Then the grids of PEERS.md: where each ends, with dx/dt = 1 from 0.
"""

from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from benchmarks._bench import OURS, Report, compare, run
from manifoldflow.sampling import Kernel, linear_grid, ode_kernel, simulate

STEPS = 100
GRIDS = [
    (0.5, 1.0, 0.1),
    (0.2, 0.7, 0.1),
    (1.0, 0.0, 0.1),
    (0.0, 1.0, 1.0),
    *((0.0, 1.0, 1 / n) for n in (49, 98, 103, 107, 196, 197)),
]


def body(report: Report, budget: float) -> None:
    from flow_matching.solver import RiemannianODESolver
    from flow_matching.utils.manifolds import Sphere as PeerSphere

    space, peer_space = mf.Sphere(2), PeerSphere()
    g = torch.Generator().manual_seed(0)
    x, stored = space.sample_uniform((1_024,), generator=g), torch.randn(1_024, 3, generator=g)
    grid = linear_grid(STEPS)

    for method in ("euler", "midpoint", "rk4"):

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return space.to_tangent(x, stored)

        def peer_velocity(x: Tensor, t: Tensor) -> Tensor:
            return peer_space.proju(x, stored)

        kernel = ode_kernel(velocity, space, method)
        solver = RiemannianODESolver(peer_space, peer_velocity)

        def ours(kernel: Kernel = kernel) -> Any:
            with torch.no_grad():
                return simulate(kernel, x, grid)

        def theirs(method: str = method, solver: RiemannianODESolver = solver) -> Tensor:
            return solver.sample(x, step_size=1 / STEPS, method=method, time_grid=torch.tensor([0.0, 1.0]))

        truth: Any = simulate(
            ode_kernel(lambda y, t: space.to_tangent(y, stored.double()), space, "rk4"), x.double(), linear_grid(400)
        )
        off = {n: float(space.dist(f().double(), truth).max()) for n, f in ((OURS, ours), ("flow_matching", theirs))}
        target = 1.0 if method == "euler" else None
        report.add(
            compare(
                f"{STEPS} steps of {method}",
                {OURS: ours, "flow_matching": theirs},
                error=off,
                exact=10,
                target=target,
                budget=budget,
            )
        )

    print("\n| grid, step | true end, calls | ours | flow_matching |\n|---|---|---|---|")
    for start, end, step in GRIDS:
        n = round(abs(end - start) / step)
        case = f"[{start}, {end}], 1/{round(1 / step)} | {end - start:+.4f}, {n}"
        print(f"| {case} | {_ours(start, end, n)} | {_theirs(start, end, step)} |")


def _ours(start: float, end: float, steps: int) -> str:
    calls = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.ones_like(x)

    x: Any = simulate(ode_kernel(velocity, mf.Euclidean(1)), torch.zeros(1, 1), linear_grid(steps, start, end))
    return f"{float(x):+.4f}, {len(calls)}"


def _theirs(start: float, end: float, step: float) -> str:
    from flow_matching.solver import RiemannianODESolver
    from flow_matching.utils.manifolds import Euclidean

    calls = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        calls.append(t)
        return torch.ones_like(x)

    try:
        solver = RiemannianODESolver(Euclidean(), velocity)
        x = solver.sample(torch.zeros(1, 1), step_size=step, method="euler", time_grid=torch.tensor([start, end]))
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:60]}"
    return f"{float(x):+.4f}, {len(calls)}"


if __name__ == "__main__":
    run(__doc__.splitlines()[0], body, ["flow_matching"])
