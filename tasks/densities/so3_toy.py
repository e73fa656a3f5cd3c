"""Rectified flow on the rotation group: a multi-modal set, true Wasserstein distances, before and after one reflow.

The published toy (FoldFlow, Bose et al. 2024, section 5.1) compares sampled rotations with a test set. Here the set is a
mixture with a known law, so that the floor, exact samples against exact samples, is known too. Run it with

    python -m manifoldflow.tasks.densities.so3_toy --seeds 0-4 --out so3_toy.json

W1 and W2 are true Wasserstein distances of the rotation angle in radians. The published code prints OT of d^2 as "W1" (our
W2 squared) and the root of OT of d^4 as "W2" (our W4 squared); both are in the JSON as ``code_W1`` and ``code_W2``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.manifolds.rotation import matrix_to_quaternion, quaternion_to_matrix
from manifoldflow.metrics import wasserstein
from manifoldflow.reflow import ReflowConfig, make_pairs, reflow, straightness, transport_cost
from manifoldflow.tasks.common.files import write_json
from manifoldflow.tasks.common.runs import toy_training
from manifoldflow.tasks.common.seeds import seeds_of
from manifoldflow.tasks.common.splits import drawn_batches
from manifoldflow.tasks.common.tables import markdown, spread
from manifoldflow.training import fit

SCALE = 0.08
"""Of every mode, in radians."""

EDGE = 0.55
"""Between neighbours of the cube, as rotation vectors, in radians."""

SOURCE = 0.8
"""Scale of the source, in radians: half of its draws are more than 1.2 rad away from the identity, 0.1 % more than 3.

Not uniform: a quarter of uniform rotations are within 0.4 rad of a half turn, where the shortest way to a mode changes
sides. A straight coupling jumps there; a network rounds the jump off, and the points nearby end 2 rad astray.
"""


def modes(kind: str = "cube") -> Tensor:
    """Centres as quaternions, ``(K, 4)``.

    ``"cube"``: 27, rotation vectors on a 3 x 3 x 3 lattice around the identity, neighbours about :data:`EDGE` apart.
    ``"spread"``: 8, picked from seeded uniform draws so that each is as far as it gets from those before, 2 rad on average.
    """
    space = mf.UnitQuaternion()
    if kind == "cube":
        lattice = torch.cartesian_prod(*[torch.tensor([-EDGE, 0.0, EDGE])] * 3)
        return space.exp(space.origin((27,)), lattice)
    if kind != "spread":
        raise ValueError(f"modes must be 'cube' or 'spread', got {kind!r}")
    drawn = space.sample_uniform((3000,), generator=torch.Generator().manual_seed(7))
    kept, nearest = [0], space.dist(drawn[0], drawn)
    for _ in range(7):
        kept.append(int(nearest.argmax()))
        nearest = nearest.minimum(space.dist(drawn[kept[-1]], drawn))
    return drawn[kept]


def exact(n: int, kind: str = "cube", *, generator: torch.Generator, stratified: bool = False) -> Tensor:
    """Draws of the mixture of IGSO(3) with equal weights, as quaternions ``(n, 4)``.

    Args:
        n: number of draws.
        kind: of the modes.
        generator: of the draws.
        stratified: the same number from every mode, a reference without the noise of the shares.
    """
    centres = modes(kind)
    k = len(centres)
    which = torch.arange(n) % k if stratified else torch.randint(0, k, (n,), generator=generator)
    law = mf.IGSO3(SCALE, mean=centres[which], manifold=mf.UnitQuaternion())
    return law.sample((n,), generator=generator)


def build(
    space: mf.SO3 | mf.UnitQuaternion,
    *,
    width: int = 144,
    depth: int = 4,
    transport: bool = False,
    source: str = "around",
) -> mf.Flow:
    """Geodesics and an MLP, more times where the modes take shape; with or without minibatch optimal transport.

    Args:
        space: matrices or quaternions.
        width, depth: of the MLP.
        transport: pair source and data by minibatch optimal transport.
        source: ``"around"`` the identity (:data:`SOURCE`) or ``"uniform"``.
    """
    law = mf.Uniform() if source == "uniform" else mf.IGSO3(SOURCE)
    coupling = mf.MinibatchOT() if transport else None
    net = mf.nn.TangentMLP(space, width, depth)
    return mf.Flow(space, net, source=law, coupling=coupling, time_warp=mf.Late(0.1))


def train(flow: mf.Flow, data: Tensor, steps: int, batch: int = 512, rate: float = 2e-3, *, seed: int = 0) -> mf.Flow:
    """AdamW with a cosine, averaged weights."""
    config = toy_training(steps, learning_rate=rate, betas=(0.9, 0.99), ema=0.995, seed=seed)
    return fit(flow, drawn_batches(len(data), batch, seed, lambda rows, _: {"x": data[rows]}), config, out=None)


GRIDS = {"4 mid": torch.tensor([0, 0.35, 0.6, 0.8, 1]), "4 late": torch.tensor([0, 0.5, 0.77, 0.92, 1])}
"""Other ways to place four steps: the exact field of the mixture is followed best on the first, or on even steps."""


def distances(x: Tensor, y: Tensor, powers: Sequence[float] = (1, 2, 4)) -> dict[str, float]:
    """True W_p in radians; given as matrices or quaternions, compared as quaternions."""
    a, b = (matrix_to_quaternion(v) if v.ndim == 3 else v for v in (x, y))
    values = wasserstein(a, b, mf.UnitQuaternion(), list(powers))
    assert isinstance(values, tuple)
    out = {f"W{p}": v for p, v in zip(powers, values, strict=True)}
    if 4 in powers:
        out |= {"code_W1": out["W2"] ** 2, "code_W2": out.pop("W4") ** 2}
    return out


def run(
    space: mf.SO3 | mf.UnitQuaternion,
    seed: int,
    *,
    steps: int = 4000,
    reflow_steps: int = 4000,
    pairs: int = 40_000,
    count: int = 2025,
    kind: str = "cube",
    transport: bool = False,
    source: str = "around",
) -> dict[str, Any]:
    """Train, reflow and measure one model."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    # One fixed training set; the test set, and the draws that give the floor, are fresh.
    data = exact(20_000, kind, generator=torch.Generator().manual_seed(12345))
    test = exact(count, kind, generator=generator, stratified=True)
    floors = [distances(exact(count, kind, generator=generator), test) for _ in range(3)]
    if isinstance(space, mf.SO3):
        data = quaternion_to_matrix(data)
    row: dict[str, Any] = {"floor": {k: statistics.fmean(f[k] for f in floors) for k in floors[0]}}
    began = time.process_time()
    fresh = build(space, transport=transport, source=source)
    base = train(fresh, data, steps, seed=seed, batch=256 if transport else 512)
    row["train_cpu_s"] = time.process_time() - began

    def measure(flow: mf.Flow, name: str) -> None:
        x0 = flow.draw_source((count,), generator=torch.Generator().manual_seed(1000 + seed))
        grids = {str(n): torch.linspace(0, 1, n + 1) for n in (1, 2, 4, 10, 100)} | GRIDS
        for n, grid in grids.items():
            powers = {"100": (1, 2, 4), "4": (1, 2)}.get(n, (2,))
            row[f"{name}@{n}"] = distances(flow.sample(x0=x0, times=grid), test, powers)

    measure(base, "base")
    own = make_pairs(base, pairs, steps=30, method="midpoint", batch_size=4096, generator=generator)
    config = ReflowConfig(steps=reflow_steps, batch_size=512, learning_rate=2e-3, ema=0.998)
    began = time.process_time()
    faster = reflow(base, own, config, generator=generator)
    row["reflow_cpu_s"] = time.process_time() - began
    measure(faster, "reflow")
    for name, flow in (("base", base), ("reflow", faster)):
        ends = make_pairs(flow, 1000, steps=50, method="midpoint", generator=generator)
        row[f"straightness_{name}"] = float(straightness(flow, ends))  # type: ignore[arg-type]
        row[f"transport_cost_{name}"] = float(transport_cost(flow, ends))  # type: ignore[arg-type]
    return row


def verdicts(row: dict[str, Any]) -> dict[str, float]:
    """The ratios that matter: to the floor at 100 steps, and of the base to the reflowed model at 4."""
    floor = row["floor"]
    out = {f"{n}@100 {w}/floor": row[f"{n}@100"][w] / floor[w] for n in ("base", "reflow") for w in ("W1", "W2")}
    out["base@4/reflow@4 W2"] = row["base@4"]["W2"] / row["reflow@4"]["W2"]
    best = min(row[f"base@{n}"]["W2"] for n in ("4", *GRIDS))
    return out | {"base@4 on its best grid/reflow@4 W2": best / row["reflow@4"]["W2"]}


def table(result: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: mean and deviation over the seeds."""

    def cell(rows: dict[str, dict[str, Any]], *keys: str, digits: int = 3) -> str:
        return spread((r[keys[0]] if len(keys) == 1 else r[keys[0]][keys[1]] for r in rows.values()), digits)

    columns = ["model", "seeds", "W2, 1 step", "2", "4", "4, mid", "4, late", "10", "100", "W1, 100 steps"]
    columns += ["floor W1 / W2", "S", "E d²", "code 'W1' / 'W2'"]
    lines = []
    for space, rows in result.items():
        for name in ("base", "reflow"):
            if not any(f"{name}@4" in r for r in rows.values()):
                continue
            grid = [cell(rows, f"{name}@{n}", "W2") for n in (1, 2, 4, *GRIDS, 10, 100)]
            floor = f"{cell(rows, 'floor', 'W1')} / {cell(rows, 'floor', 'W2')}"
            code = " / ".join(cell(rows, f"{name}@100", f"code_{w}") for w in ("W1", "W2"))
            straight, cost = cell(rows, f"straightness_{name}", digits=4), cell(rows, f"transport_cost_{name}")
            first = cell(rows, f"{name}@100", "W1")
            lines.append([f"{space}, {name}", str(len(rows)), *grid, first, floor, straight, cost, code])
    return markdown(columns, lines) + "\n"


MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "UnitQuaternion": (mf.UnitQuaternion(), {}),
    "SO3": (mf.SO3(), {}),
    "uniform source": (mf.UnitQuaternion(), {"source": "uniform"}),
    "minibatch OT": (mf.UnitQuaternion(), {"transport": True}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=seeds_of, default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--modes", choices=["cube", "spread"], default="cube")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--reflow-steps", type=int, default=4000)
    parser.add_argument("--pairs", type=int, default=40_000, help="of noise and sample, for the reflow")
    parser.add_argument("--count", type=int, default=2025, help="samples in each Wasserstein distance")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    result: dict[str, dict[str, dict[str, Any]]] = {}
    if given.out and given.out.exists():  # runs of other seeds and models are kept
        result = json.loads(given.out.read_text())
    for seed in given.seeds:
        for name in given.models:
            space, options = MODELS[name]
            row = run(
                space,
                seed,
                steps=given.steps,
                reflow_steps=given.reflow_steps,
                pairs=given.pairs,
                count=given.count,
                kind=given.modes,
                **options,
            )
            result.setdefault(f"{name}, {given.modes}", {})[str(seed)] = row
            print(f"{name} seed {seed}:", json.dumps(row), json.dumps(verdicts(row)), flush=True)
            if given.out:
                write_json(given.out, result)
    print(table(result))


if __name__ == "__main__":
    main()
