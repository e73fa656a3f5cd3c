"""How fast and exact are training targets x_t, u_t on S^2 and T^3 beside flow_matching's GeodesicProbPath?

| | S^2 | T^3 (angles, period 2 pi) |
|---|---|---|
| pairs x0, x1 | 1,024 and 100,000, uniform | the same |
| t | uniform on [0, 1] | the same |

Forward only, in eager mode and compiled (ours against theirs compiled where it compiles, else against eager).
Targets: 8x at B = 1,024; at 100,000 2x in eager mode and 5x compiled (against flow_matching as its users run it, in eager mode).
"""

import math
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from benchmarks._bench import OURS, Report, compare, largest, run
from manifoldflow.manifolds.base import Manifold


def body(report: Report, budget: float) -> None:
    from flow_matching.path import GeodesicProbPath
    from flow_matching.path.scheduler import CondOTScheduler
    from flow_matching.utils.manifolds import FlatTorus
    from flow_matching.utils.manifolds import Sphere as PeerSphere

    cases: dict[str, tuple[Manifold, Any]] = {
        "S^2": (mf.Sphere(2), PeerSphere()),
        "T^3": (mf.Torus(3, period=2 * math.pi), FlatTorus()),
    }
    for batch in (1_024, 100_000):
        for name, (space, peer_space) in cases.items():
            generator = torch.Generator().manual_seed(0)
            x0, x1 = (space.sample_uniform((batch,), generator=generator) for _ in range(2))
            t = torch.rand(batch, generator=generator)
            path = mf.Geodesic(manifold=space)
            peer_path = GeodesicProbPath(CondOTScheduler(), peer_space)

            def ours(
                path: mf.Geodesic = path, x0: Tensor = x0, x1: Tensor = x1, t: Tensor = t
            ) -> tuple[Tensor, Tensor]:
                point = path.sample(x0, x1, t)
                return point.x, point.velocity

            def theirs(
                path: GeodesicProbPath = peer_path, x0: Tensor = x0, x1: Tensor = x1, t: Tensor = t
            ) -> tuple[Tensor, Tensor]:
                point = path.sample(x_0=x0, x_1=x1, t=t)
                return point.x_t, point.dx_t

            truth = space.geodesic(x0.double(), x1.double(), t.double())
            compiled = torch.compile(ours, fullgraph=True, dynamic=False)
            off = {n: _error(space, f(), truth) for n, f in ((OURS, ours), ("flow_matching", theirs))}
            report.add(
                compare(
                    f"{name}, B={batch:,}, eager",
                    {OURS: ours, "flow_matching": theirs},
                    error=off,
                    exact=10,
                    target=8 if batch < 2000 else 2,
                    budget=budget,
                )
            )
            off[OURS] = _error(space, compiled(), truth)
            target = 8 if batch < 2000 else 5
            report.add(
                compare(
                    f"{name}, B={batch:,}, ours compiled",
                    {OURS: compiled, "flow_matching": theirs},
                    error=off,
                    exact=10,
                    target=target,
                    budget=budget,
                )
            )


def _error(space: Manifold, found: tuple[Tensor, Tensor], truth: tuple[Tensor, Tensor]) -> float:
    """Largest error of x_t as a distance, and of u_t, over all but the pairs within 1e-2 of the cut locus."""
    length = truth[1].norm(dim=-1)
    reach = math.pi  # both spaces are measured in radians
    kept = (length if isinstance(space, mf.Sphere) else truth[1].abs().amax(-1)) < reach - 1e-2
    off = space.dist(found[0].double(), truth[0])[kept].max()
    return max(float(off), largest(found[1][kept], truth[1][kept]))


if __name__ == "__main__":
    run(__doc__.splitlines()[0], body, ["flow_matching", "manifoldflow"])
