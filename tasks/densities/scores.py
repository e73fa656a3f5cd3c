"""Scores of a density flow beside the uniform law and kernel density estimates, with what a reader must know."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.tasks.common.files import write_json
from manifoldflow.tasks.common.splits import Split
from manifoldflow.tasks.common.tables import share_within, show
from manifoldflow.tasks.densities.data import DataSet
from manifoldflow.tasks.densities.kde import fit_all, has_kernel
from manifoldflow.tasks.densities.spaces import name_of
from manifoldflow.tasks.densities.splits import seen_share

CHECKED_ROWS = 64
"""Points that the solver's error is measured on."""

WORDS = {
    "uniform": "uniform",
    "kde_one": "kernel density, one scale",
    "kde_two": "kernel density, two scales",
}


def flow_score(flow: mf.Flow, x: Tensor, steps: int) -> dict[str, float]:
    """NLL of points in nats with respect to the Riemannian volume, its standard error over the points, and what the solver
    leaves: the mean difference to half as many steps, over 64 of them."""
    weight = next(flow.parameters())
    points = x.to(weight.device, weight.dtype)
    with torch.no_grad():
        value = flow.log_prob(points, steps=steps).double()
        coarse = flow.log_prob(points[:CHECKED_ROWS], steps=max(1, steps // 2)).double()
    error = (value[:CHECKED_ROWS] - coarse).abs()
    return {
        "nll": -float(value.mean()),
        "standard_error": float(value.std(correction=0)) / math.sqrt(max(len(x) - 1, 1)),
        "solver_error": float(error.mean()),
    }


def baselines(data: DataSet, parts: Split, rows: Tensor | None = None, seed: int = 0) -> dict[str, float]:
    """NLL of the uniform law (compact spaces) and of kernel density estimates with one and with two scales.

    Args:
        data, parts: the set and its split; scales are chosen on validation rows.
        rows: which to score; those for testing by default.
        seed: of the choice of validation rows.
    """
    made: dict[str, float] = {}
    if math.isfinite(data.space.log_volume):
        made["uniform"] = data.space.log_volume
    if has_kernel(data.space):
        x = data.x[parts.test if rows is None else rows]
        kernels = fit_all(data.space, data.x[parts.train], data.x[parts.val], ("one", "two"), seed=seed)
        made |= {f"kde_{kind}": -float(law.log_prob(x).mean()) for kind, law in kernels.items()}
    return made


def print_scores(
    flow: mf.Flow,
    data: DataSet,
    parts: Split,
    steps: int,
    out: Path | None,
    part: str = "test",
    mass: int = 0,
) -> dict[str, Any]:
    """Score one part of a set, print the table and its notes, and keep the numbers.

    Args:
        flow: the flow.
        data, parts: the set and its split.
        steps: solver steps.
        out: JSON file for the numbers; None for none.
        part: ``"train"``, ``"val"`` or ``"test"``.
        mass: uniform points for the integral of the density; 0 for none.
    """
    rows = getattr(parts, part)
    made: dict[str, Any] = flow_score(flow, data.x[rows], steps) | baselines(data, parts, rows)
    made |= {"seen": seen_share(data, parts) if part == "test" else 0.0, "rows": len(rows), "steps": steps}
    table = [[words, f"{made[name]:.3f}"] for name, words in WORDS.items() if name in made]
    table.append(["flow", f"{made['nll']:.3f} ± {made['standard_error']:.3f}"])
    if mass:
        made["mass"], made["mass_error"] = total_mass(flow, mass, steps)
    show(
        ("model", f"NLL of {len(rows)} {part} points (nats)"),
        table,
        title=f"{data.name} on {name_of(data.space)}",
        notes=remarks(made, mass),
    )
    if out is not None:
        write_json(out, made)
    return made


def remarks(made: dict[str, Any], mass: int = 0) -> list[str]:
    """What must be said about scores, a sentence each: a baseline that is better, copies, the solver's error."""
    said = []
    best = min((name for name in WORDS if name in made), key=lambda name: made[name], default=None)
    if best is not None and made[best] < made["nll"]:
        said.append(
            f"the baseline '{WORDS[best]}' is better than the flow here, by {made['nll'] - made[best]:.2f} nats; "
            "try more --training.max_steps, or use the baseline"
        )
    if made["seen"] > 0.01:
        said.append(
            f"{share_within(made['seen'], made['rows'])} of the test points are exact copies of training points, so this "
            "split rewards copying; compare --split_by deduplicated"
        )
    if made["solver_error"] > 0.02:
        said.append(f"the solver's error is about {made['solver_error']:.2g} nats; raise the number of steps")
    if mass:
        said.append(f"the density integrates to {made['mass']:.4f} ± {made['mass_error']:.4f} ({mass} uniform points)")
    return said


def total_mass(flow: mf.Flow, count: int, steps: int, seed: int = 0) -> tuple[float, float]:
    """Integral of the density by uniform points, and its standard error."""
    space = flow.path["x"].space
    if not math.isfinite(space.log_volume):
        raise ValueError(f"--mass needs a compact manifold, {name_of(space)} has no uniform law")
    x = space.sample_uniform((count,), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        share = (flow.log_prob(x, steps=steps) + space.log_volume).double().exp()
    return float(share.mean()), float(share.std()) / math.sqrt(count)
