"""Swiss roll on the simplex of three categories: Fisher-Rao, its coordinates without the square root, and flat.

The toy of Statistical Flow Matching (Cheng et al. 2024, section 4.1), in its protocol: 1,000 points, 2,000 full-batch steps of
Adam at 1e-3, and the negative log-likelihood of the *training* points with respect to dp_1 dp_2, so a smaller number means a
better fit, not a better model. Run it with

    python -m manifoldflow.tasks.densities.swissroll --seeds 0-4 --out swissroll.json
"""

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import manifoldflow as mf
from manifoldflow.distributions.base import Distribution
from manifoldflow.manifolds.base import Manifold
from manifoldflow.metrics import wasserstein
from manifoldflow.tasks.common.files import write_json
from manifoldflow.tasks.common.runs import toy_training
from manifoldflow.tasks.common.seeds import seeds_of
from manifoldflow.tasks.common.tables import markdown, spread
from manifoldflow.training import fit

Kind = Literal["fisher_rao", "linear", "no_sqrt"]
KINDS: tuple[Kind, ...] = ("fisher_rao", "linear", "no_sqrt")
PUBLISHED = {"fisher_rao": -2.2946, "linear": -1.9267, "no_sqrt": -1.7274}
"""Exact NLL of one run in the authors' notebook. The first is no NLL of a density, see :func:`authors_extra`."""


def _spiral(count: int, noise: float, seed: int) -> Tensor:
    """Points in the plane, ``(2, count)``; the draws are made in the order theta, noise of x, noise of y."""
    generator = torch.Generator().manual_seed(seed)
    theta = 1.5 * math.pi * (1 + 2 * torch.rand(count, generator=generator))
    plane = torch.stack([theta * theta.cos(), theta * theta.sin()])
    return plane + noise * torch.stack([torch.randn(count, generator=generator) for _ in range(2)])


def _frame(plane: Tensor, pad: float) -> tuple[Tensor, Tensor]:
    """The shift ``(2, 1)`` and the scale that put the points inside the simplex."""
    shift = pad - plane.amin(-1, keepdim=True)
    return shift, (plane + shift).sum(0).max() + pad


def swiss_roll(
    count: int = 1000, *, noise: float = 1.0, pad: float = 1.0, seed: int = 42, held_out: bool = False
) -> Tensor:
    r"""Points of a spiral inside the simplex, ``(count, 3)`` float32.

    :math:`(x, y) = \theta (\cos\theta, \sin\theta)` with :math:`\theta = 1.5 \pi (1 + 2u)`, plus normal noise, shifted so that
    both coordinates are at least ``pad``; the third category gets what is left to the largest x + y plus ``pad``.

    Args:
        count: number of points.
        noise: standard deviation before scaling (the spiral's radius grows from 4.7 to 14.1).
        pad: distance to the three sides before scaling.
        seed: of the draws; 42 with 1,000 points names the published set.
        held_out: fresh points of the same law, in the place and scale of the training points (the few outside are dropped).
    """
    plane = _spiral(count, noise, seed)
    shift, whole = _frame(plane, pad)
    if held_out:
        plane = _spiral(count, noise, seed + 1)
    x, y = plane + shift
    points = torch.stack([x, y, whole - (x + y)], -1) / whole
    return points[(points > 0).all(-1)]


def true_nll(points: Tensor, *, count: int = 1000, noise: float = 1.0, pad: float = 1.0, seed: int = 42) -> float:
    """Mean negative log-density of ``points`` under the law that they were drawn from, with respect to dp_1 dp_2."""
    shift, whole = _frame(_spiral(count, noise, seed), pad)
    theta = 1.5 * math.pi * (1 + 2 * (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    centre = torch.stack([theta * theta.cos(), theta * theta.sin()], -1)
    plane = points[:, :2].double() * whole - shift.mT
    exponent = -0.5 * torch.cdist(plane, centre).square() / noise**2
    log_density = exponent.logsumexp(-1) - math.log(len(theta) * 2 * math.pi * noise**2) + 2 * whole.log()
    return -float(log_density.mean())


@dataclass(frozen=True)
class FlatDirichlet(Distribution):
    r"""Dirichlet(1, ..., 1), density (K - 1)! with respect to :math:`dp_1 \dots dp_{K-1}`, on the simplex of any metric."""

    manifold: Manifold | None = None

    def _draw(
        self,
        shape: tuple[int, ...],
        *,
        mask: Tensor | None,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> Tensor:
        space: Any = self.space
        return mf.Simplex(space.categories, "flat").sample_uniform(
            shape, generator=generator, dtype=dtype, device=device
        )

    def _log_density(self, x: Tensor) -> Tensor:
        space: Any = self.space
        return math.lgamma(space.categories) - space.log_volume_per_lebesgue(x.clamp_min(1e-12))


class SimplexNet(nn.Module):
    r"""The published network in one of three coordinate systems of the simplex.

    ``"fisher_rao"`` sees :math:`\sqrt p` and returns a tangent of the sphere; ``"no_sqrt"`` sees p and returns the rate
    :math:`\dot p`, which is turned into the same tangent, :math:`\dot p / \sqrt p`; ``"linear"`` sees p and returns
    :math:`\dot p` on the flat simplex. So the first two have one geometry, one set of paths and one loss, and differ in
    coordinates alone.

    Args:
        kind: which.
        width: of the encoders; the trunk has layers of 2 width and width.
        floor: of p where it divides, as in the published loss.
    """

    def __init__(self, kind: Kind, width: int = 128, floor: float = 1e-4) -> None:
        super().__init__()
        self.kind, self.width, self.floor = kind, width, floor
        self.of_point = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.of_time = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.trunk = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.ReLU(),
            nn.Linear(2 * width, width),
            nn.ReLU(),
            nn.Linear(width, 3),
        )

    def raw(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's three numbers, before any projection. x ``(B, 3)``, t ``(B,)``."""
        half = self.width // 2
        rates = torch.exp(-math.log(2000) / (half - 1) * torch.arange(half, dtype=x.dtype, device=x.device))
        phase = 2000 * t.to(x.dtype).expand(x.shape[:-1]).unsqueeze(-1) * rates
        seen = x.clamp_min(1e-12).sqrt() if self.kind == "fisher_rao" else x
        time_code = self.of_time(torch.cat([phase.sin(), phase.cos()], -1))
        return self.trunk(torch.cat([self.of_point(seen), time_code], -1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Tangents ``(B, 3)`` of :class:`manifoldflow.Simplex` in its metric."""
        out = self.raw(x, t)
        if self.kind == "no_sqrt":
            return (out - out.mean(-1, keepdim=True)) / x.clamp_min(self.floor).sqrt()
        return out  # the path projects it


def build(kind: Kind) -> mf.Flow:
    """The flow of one row of the table; all three start from Dirichlet(1), uniform in dp_1 dp_2."""
    space = mf.Simplex(3, "flat" if kind == "linear" else "fisher_rao")
    return mf.Flow(space, SimplexNet(kind), source=FlatDirichlet())


def train(flow: mf.Flow, data: Tensor, steps: int = 2000, learning_rate: float = 1e-3, *, seed: int = 0) -> mf.Flow:
    """Full-batch Adam with a constant rate and the last weights, as published."""
    config = toy_training(steps, learning_rate=learning_rate, schedule="constant", ema=0.0, seed=seed)
    return fit(flow, [{"x": data}], config, out=None)


class Rate(nn.Module):
    """The field of a model as the rate of change of p, in the plane of the simplex and beyond its sides."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out = self.model.raw(x, t)
        return out - out.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Plane(Distribution):
    """Dirichlet(1) as the authors continue it past the sides of the simplex: (K - 1)! everywhere."""

    manifold: Manifold | None = None

    def _log_density(self, x: Tensor) -> Tensor:
        return torch.full(x.shape[:-1], math.lgamma(x.shape[-1]), dtype=x.dtype, device=x.device)


def log_density(flow: mf.Flow, points: Tensor, steps: int = 200, **kwargs: Any) -> Tensor:
    """With respect to dp_1 dp_2, in nats, ``(B,)``.

    The published time code has waves down to a period of 0.003: 100 steps leave an error of 0.02 nats in the mean of the
    Fisher-Rao model, 200 one of 0.004 (against 800), with the divergence at all of them.

    The Fisher-Rao model is solved on its sphere, which has no sides. The other two are rates of p, smooth in p, and
    are solved in the plane, where the trace is the plain one; trajectories may leave the simplex there, see :func:`is_inside`.
    """
    space, model = _of(flow)
    if model.kind != "fisher_rao":
        plane = mf.Flow(mf.Euclidean(3), Rate(model), source=Plane())
        return plane.log_prob(points, steps=steps, trace_every=1, **kwargs).double()
    return (
        flow.log_prob(points, steps=steps, trace_every=1, **kwargs) + space.log_volume_per_lebesgue(points)
    ).double()


def is_inside(flow: mf.Flow, points: Tensor, steps: int = 200) -> Tensor:
    """Which points come from inside the simplex, bool ``(B,)``; elsewhere the exact density is 0. True on the sphere."""
    _, model = _of(flow)
    if model.kind == "fisher_rao":
        return torch.ones(len(points), dtype=torch.bool)
    plane = mf.Flow(mf.Euclidean(3), Rate(model), source=Plane())
    return (plane.sample(x0=points, times=torch.linspace(1, 0, steps + 1), method="rk4") >= 0).all(-1)


def _of(flow: mf.Flow) -> tuple[Any, Any]:
    return flow.spaces, flow.model


@torch.no_grad()
def authors_extra(flow: mf.Flow, points: Tensor, steps: int = 200) -> Tensor:
    r"""What the authors' code adds to the log-density of the Fisher-Rao model: :math:`2 \int \langle z, f \rangle dt`, ``(B,)``.

    It takes the trace of the Jacobian of :math:`f - \langle z, f\rangle z` in all three coordinates of
    :math:`z = \sqrt p`. Across the sphere that field changes by :math:`-2 \langle z, f\rangle`, which is no part of the
    divergence, and the loss compares after the projection, so it never sees :math:`\langle z, f\rangle`. The resulting
    "density" integrates to 1.7, gives fresh points a smaller NLL than the law that they were drawn from, and adding
    :math:`c z` to f lowers it by 2 c and changes no sample.
    """
    grid = torch.linspace(1, 0, steps + 1)
    states = flow.sample(x0=points, times=grid, method="rk4", trajectory=True)
    net: Any = flow.model
    radial = torch.stack([(x.sqrt() * 0.5 * net.raw(x, t)).sum(-1) for x, t in zip(states, grid, strict=True)])
    return -2 * torch.trapezoid(radial, grid, dim=0).double()


def simplex_grid(side: int) -> tuple[Tensor, float]:
    """Centres of the ``side**2`` equal triangles of the simplex, and the area of one in dp_1 dp_2."""
    i, j = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    up = torch.stack([i + 1 / 3, j + 1 / 3], -1)[i + j < side]
    down = torch.stack([i + 2 / 3, j + 2 / 3], -1)[i + j < side - 1]
    plane = torch.cat([up, down]) / side
    return torch.cat([plane, 1 - plane.sum(-1, keepdim=True)], -1), 0.5 / side**2


def run(kind: Kind, seed: int, *, steps: int = 2000, nll_steps: int = 200, repeats: int = 0) -> dict[str, float]:
    """Train one model and measure it, see :func:`measure`."""
    torch.manual_seed(seed)
    flow, began = build(kind), time.process_time()
    flow = train(flow, swiss_roll(), steps, seed=seed)
    trained = time.process_time()
    row = measure(flow, seed, nll_steps=nll_steps, repeats=repeats)
    return {"train_cpu_s": trained - began, "measure_cpu_s": time.process_time() - trained} | row


def measure(flow: mf.Flow, seed: int = 0, *, nll_steps: int = 200, repeats: int = 0) -> dict[str, float]:
    """The row of a trained model; ``repeats`` Hutchinson estimates, the total mass and half the steps if positive."""
    data, fresh = swiss_roll(), swiss_roll(held_out=True)
    _, model = _of(flow)
    is_sphere = model.kind == "fisher_rao"
    exact, held_out = (log_density(flow, points, nll_steps) for points in (data, fresh))
    row = {"exact": -float(exact.mean()), "held_out": -float(held_out.mean())}
    if is_sphere:
        row["authors_code"] = -float((exact + authors_extra(flow, data, nll_steps)).mean())
        row["authors_code_held_out"] = -float((held_out + authors_extra(flow, fresh, nll_steps)).mean())
    row["share_outside"] = 1 - float(is_inside(flow, data, nll_steps).double().mean())
    generator = torch.Generator().manual_seed(seed)
    if repeats:
        row["exact_half_the_steps"] = -float(log_density(flow, data, nll_steps // 2).mean())
        estimates = [
            -float(log_density(flow, data, nll_steps, divergence="hutchinson", generator=generator).mean())
            for _ in range(repeats)
        ]
        row |= {"hutchinson": statistics.fmean(estimates), "hutchinson_std": statistics.pstdev(estimates)}
        grid, area = simplex_grid(48)
        there = log_density(flow, grid, nll_steps)
        row["mass"] = float(torch.where(is_inside(flow, grid, nll_steps), there, -torch.inf).exp().sum()) * area
        if is_sphere:
            row["authors_mass"] = float((there + authors_extra(flow, grid, nll_steps)).exp().sum()) * area
    samples = flow.sample(len(data), steps=100, method="midpoint", generator=generator)
    row["W2_to_training_points"] = plane_distance(samples, data)
    return row


def plane_distance(samples: Tensor, data: Tensor) -> float:
    """W2 in the plane of the simplex, the same ground distance for all models."""
    value = wasserstein(samples, data, mf.Simplex(3, "flat"), 2.0)
    assert isinstance(value, float)
    return value


def table(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: mean and deviation over the seeds."""
    keys = ("exact", "hutchinson", "authors_code", "held_out", "mass", "share_outside", "W2_to_training_points")
    columns = ["model", "NLL exact", "Hutchinson, one seed", "trace as the authors' code", "NLL held out", "mass"]
    columns += ["from outside", "W2 to the points", "published"]
    lines = [
        [
            f"{kind} ({len(rows)} seeds)",
            *(spread(row[key] for row in rows.values() if key in row) for key in keys),
            f"{PUBLISHED[kind]:.3f}",  # type: ignore[index]
        ]
        for kind, rows in result.items()
    ]
    truth = [f"{true_nll(swiss_roll()):.3f}", "-", "-", f"{true_nll(swiss_roll(held_out=True)):.3f}"]
    return markdown(columns, [*lines, ["the law itself", *truth, "1", "-", "-", "-"]]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2, 3, 4])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--nll-steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3, help="Hutchinson estimates, for the first seed")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    result: dict[str, dict[str, dict[str, float]]] = {kind: {} for kind in given.kinds}
    for number, seed in enumerate(given.seeds):
        for kind in given.kinds:
            row = run(
                kind, seed, steps=given.steps, nll_steps=given.nll_steps, repeats=given.repeats if number == 0 else 0
            )
            result[kind][str(seed)] = row
            print(f"{kind} seed {seed}: " + ", ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
            if given.out:
                write_json(given.out, result)
    print(table(result))


if __name__ == "__main__":
    main()
