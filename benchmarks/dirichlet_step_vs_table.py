"""What does a sampling step of the Dirichlet flow cost without the network, beside a table on the host?

| K | 4 | 20 |
|---|---|---|
| points | 128 x 500 | 128 x 500 |

The rival is the approach that was published with the path, written anew: the speed from central differences of scipy's betainc
on a grid of 700 alphas and 2,000 points, built once; each step copies x to the host in float64, interpolates in the row of its
alpha, builds the K x K flows of a position and sums them; its step projects onto the simplex by sorting. Ours builds one cubic
table for alpha on the device, and needs no projection: x + h v >= 0 for h sum_i p_i C(x_i) <= 1, and C <= 1. float32, alpha
3.305, a step of 0.07. The error is the largest of the field relative to the exact one's largest entry.

The target is 4 times in the same run. The published package took 29.5 ms (K = 4) and 286 ms (K = 20) with two threads on
another day; the last rows compare with that.
"""

import math
import time

import numpy as np
import scipy.special
import torch
from torch import Tensor

import manifoldflow as mf
from benchmarks._bench import OURS, Report, Row, compare, largest, run
from manifoldflow.paths.dirichlet_field import dirichlet_speed, marginal_velocity

BATCH, LENGTH, ALPHA, STEP = 128, 500, 3.305, 0.07
RIVAL = "host table"
PUBLISHED = {4: 29.5e-3, 20: 286e-3}  # seconds, measured with two threads


class HostTable:
    """Speeds on a grid of alpha and x, float64 on the host."""

    def __init__(self, categories: int, spacing: float = 0.01, points: int = 2000) -> None:
        b = categories - 1
        self.alphas = np.arange(1.0, 8.0, spacing)
        self.x = np.linspace(0.0, 1.0, points + 2)[1:-1]
        a, x, h = self.alphas[:, None], self.x[None], spacing / 2
        slope = (scipy.special.betainc(a + h, b, x) - scipy.special.betainc(a - h, b, x)) / (2 * h)
        self.speed = -slope * np.exp(scipy.special.betaln(a, b) - b * np.log1p(-x) - (a - 1) * np.log(x))

    def velocity(self, x: Tensor, probabilities: Tensor, alpha: float) -> Tensor:
        """The marginal field, through all conditional ones."""
        row = self.speed[int(np.abs(self.alphas - alpha).argmin())]
        found = np.interp(x.cpu().numpy().astype(np.float64), self.x, row)
        speed = torch.from_numpy(found).to(x)
        flows = (torch.eye(x.shape[-1], dtype=x.dtype) - x.unsqueeze(-1)) * speed.unsqueeze(-2)
        return (flows * probabilities.unsqueeze(-2)).sum(-1)


def body(report: Report, budget: float) -> None:
    alpha = torch.tensor(ALPHA)
    for categories in (4, 20):
        generator = torch.Generator().manual_seed(0)
        law = mf.Dirichlet(1.0, mf.Simplex(categories))
        x = law.sample((BATCH, LENGTH), generator=generator, dtype=torch.float32)
        p = torch.softmax(torch.randn(x.shape, generator=generator), -1)
        start = time.perf_counter()
        table = HostTable(categories)
        print(f"| K = {categories}: the host table took {time.perf_counter() - start:.2f} s to build | | | |")

        w = p.double() * dirichlet_speed(x.double(), float(alpha), categories)
        exact = w - x * w.sum(-1, keepdim=True)
        found = {OURS: marginal_velocity(x, p, alpha), RIVAL: table.velocity(x, p, ALPHA)}
        error = {name: largest(v, exact) / float(exact.abs().max()) for name, v in found.items()}
        project = mf.Simplex(categories).project

        def ours(x: Tensor = x, p: Tensor = p) -> Tensor:
            return x + STEP * marginal_velocity(x, p, alpha)

        def rival(x: Tensor = x, p: Tensor = p, table: HostTable = table, project=project) -> Tensor:  # type: ignore[no-untyped-def]
            return project(x + STEP * table.velocity(x, p, ALPHA))

        assert ours().min() >= 0 and (ours().sum(-1) - 1).abs().max() < 1e-6
        fields = {
            OURS: lambda x=x, p=p: marginal_velocity(x, p, alpha),
            RIVAL: lambda x=x, p=p, table=table: table.velocity(x, p, ALPHA),
        }
        case = f"K = {categories}, {BATCH} x {LENGTH}"
        report.add(compare(f"{case}, field", fields, error=error, target=4.0, exact=math.inf, budget=budget))
        row = compare(f"{case}, step", {OURS: ours, RIVAL: rival}, target=4.0, exact=math.inf, budget=budget)
        report.add(row)
        ratio = PUBLISHED[categories] / row.seconds[OURS]
        seconds = {OURS: row.seconds[OURS], "published, then": PUBLISHED[categories]}
        report.add(Row(f"{case}, step", seconds, seconds, {}, ratio, ">= 4.00", ratio >= 4))


if __name__ == "__main__":
    run((__doc__ or "").splitlines()[0], body, peers=("scipy",))
