"""A flow on a triangle mesh: three bumps on a torus, on a bumpy sphere, or on a closed mesh of yours.

    python -m manifoldflow.tasks.densities.meshes --mesh torus --seconds 60
    python -m manifoldflow.tasks.densities.meshes --mesh bunny.obj --kernel diffusion --out bunny.json

Source uniform by area, paths that descend a spectral premetric (Chen & Lipman 2024, section 3.2). The density of the data is
known, so the scores stand beside the best possible ones.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

import manifoldflow as mf
from manifoldflow.distributions import MeshBumps
from manifoldflow.manifolds.mesh_shapes import bumpy_sphere_mesh, torus_mesh
from manifoldflow.tasks.common.files import write_json
from manifoldflow.tasks.common.runs import toy_training
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.training import fit

Kernel = Literal["biharmonic", "diffusion", "commute"]
SHAPES: dict[str, Callable[[], mf.Mesh]] = {"torus": torus_mesh, "bumpy": bumpy_sphere_mesh}


def load_mesh(name: str) -> mf.Mesh:
    """A mesh made by code, or one from a file.

    Raises:
        FileNotFoundError, ValueError: no such file, or no closed surface in it.
    """
    return SHAPES[name]() if name in SHAPES else mf.Mesh.from_file(name)


def learn(
    mesh: mf.Mesh, law: MeshBumps, seconds: float, seed: int, batch: int = 256, most: int = 10**9
) -> tuple[mf.Flow, int]:
    """A flow after so many seconds of training (or ``most`` steps), and its steps."""
    torch.manual_seed(seed)
    flow = mf.Flow(mesh, model=mf.nn.TangentMLP(mesh, 128, 4), path=mf.Premetric(steps=20))
    steps = 0

    def draws(start: int) -> Iterator[dict[str, Tensor]]:
        nonlocal steps
        while True:
            steps = start = start + 1
            yield {"x": law.sample((batch,), generator=generator_of(seed, start))}

    options = {"max_minutes": seconds / 60, "gradient_clip": 5.0, "ema": 0.99, "betas": (0.9, 0.99), "progress": True}
    config = toy_training(most, learning_rate=2e-3, seed=seed, **options)
    return fit(flow, draws, config, out=None), steps


def run(name: str, kernel: Kernel, seconds: float, seed: int, **less: int) -> dict[str, Any]:
    """Train and measure.

    Args:
        name: of the mesh, or its file.
        kernel: of the premetric.
        seconds: of training.
        seed: of everything.
        less: ``most`` training steps and ``points`` to measure on, to try things out.
    """
    points = less.pop("points", 1000)
    mesh = load_mesh(name).with_premetric(kernel)
    began = time.perf_counter()
    mesh.features(mesh.origin((1,)))  # computes the eigenpairs, or reads them from the cache
    eigenpairs = time.perf_counter() - began
    law = MeshBumps.spread(mesh)
    flow, steps = learn(mesh, law, seconds, seed, **less)
    generator = torch.Generator().manual_seed(1000 + seed)
    test = law.sample((points // 2,), generator=generator)
    with torch.no_grad():
        made = flow.sample(2 * points, steps=100, method="midpoint", generator=generator)
        log_prob = flow.log_prob(test, steps=50, trace_every=1)
        uniform = mesh.sample_uniform((points,), generator=generator)
        share = (flow.log_prob(uniform, steps=25, trace_every=1) + mesh.log_volume).exp()
    return {
        "mesh": str(mesh),
        "kernel": kernel,
        "seed": seed,
        "training_steps": steps,
        "seconds": seconds,
        "eigenpairs_seconds": eigenpairs,
        "nll": -float(log_prob.mean()),
        "nll_uniform": mesh.log_volume,
        "nll_law": -float(law.log_prob(test).mean()),
        "below_uniform": mesh.log_volume + float(log_prob.mean()),
        "farthest_from_surface": float(mesh.residual(made).max()),
        "nll_law_of_samples": -float(law.log_prob(made).mean()),
        "mass": float(share.mean()),
        "mass_error": float(share.std()) / len(share) ** 0.5,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", default="torus", help="torus, bumpy, or a closed OBJ or PLY file")
    parser.add_argument("--kernel", choices=("biharmonic", "diffusion", "commute"), default="biharmonic")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=10**9, help="of training, at most")
    parser.add_argument("--points", type=int, default=1000, help="uniform points that the mass is measured on")
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    a = parser.parse_args(arguments)
    if a.seconds <= 0:
        parser.error(f"--seconds must be positive, got {a.seconds}")
    try:
        row = run(a.mesh, a.kernel, a.seconds, a.seed, most=a.steps, points=a.points)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    for key, value in row.items():
        print(f"{key}: {value:.5g}" if isinstance(value, float) else f"{key}: {value}")
    if a.out:
        write_json(a.out, row)


if __name__ == "__main__":
    main()
