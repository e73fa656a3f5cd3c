"""A flow on a triangle mesh: three bumps on a torus, on a bumpy sphere, or on a closed mesh of yours.

    python -m manifoldflow.tasks.densities.meshes --mesh torus --seconds 60
    python -m manifoldflow.tasks.densities.meshes --mesh bunny.obj --kernel diffusion --out bunny.json

Source uniform by area, paths that descend a spectral premetric (Chen & Lipman 2024, section 3.2). The density of the data is
known, so the scores stand beside the best possible ones.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from rich.progress import Progress

import manifoldflow as mf
from manifoldflow.distributions import MeshBumps
from manifoldflow.manifolds.mesh_shapes import bumpy_sphere_mesh, torus_mesh
from manifoldflow.tasks.common.files import write_json

SHAPES: dict[str, Callable[[], mf.Mesh]] = {"torus": torus_mesh, "bumpy": bumpy_sphere_mesh}


def load_mesh(name: str) -> mf.Mesh:
    """A mesh made by code, or one from a file.

    Raises:
        FileNotFoundError, ValueError: no such file, or no closed surface in it.
    """
    return SHAPES[name]() if name in SHAPES else mf.Mesh.from_file(name)


def learn(mesh: mf.Mesh, law: MeshBumps, seconds: float, seed: int, batch: int = 256) -> tuple[mf.Flow, int]:
    """A flow after so many seconds of training, and its steps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = mf.nn.TangentMLP(mesh, 128, 4)
    flow = mf.Flow(mesh, model=net, path=mf.Premetric(steps=20))
    average = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimiser = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
    began, steps, done = time.monotonic(), 0, 0.0
    with Progress() as progress:
        bar = progress.add_task("training", total=1.0)
        while done < 1:
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * 0.5 * (1 + math.cos(math.pi * done))
            loss = flow.loss(law.sample((batch,), generator=generator), generator=generator)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimiser.step()
            average.update_parameters(net)
            steps += 1
            done = min(1.0, (time.monotonic() - began) / seconds)
            progress.update(bar, completed=done)
    net.load_state_dict(average.module.state_dict())
    return flow.eval(), steps


def run(name: str, kernel: Literal["biharmonic", "diffusion", "commute"], seconds: float, seed: int) -> dict[str, Any]:
    """Train and measure."""
    mesh = load_mesh(name).with_premetric(kernel)
    began = time.perf_counter()
    mesh.features(mesh.origin((1,)))  # computes the eigenpairs, or reads them from the cache
    eigenpairs = time.perf_counter() - began
    law = MeshBumps.spread(mesh)
    flow, steps = learn(mesh, law, seconds, seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    test = law.sample((500,), generator=generator)
    with torch.no_grad():
        made = flow.sample(2000, steps=100, method="midpoint", generator=generator)
        log_prob = flow.log_prob(test, steps=50, trace_every=1)
        uniform = mesh.sample_uniform((1000,), generator=generator)
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mesh", default="torus", help="torus, bumpy, or a closed OBJ or PLY file")
    parser.add_argument("--kernel", choices=("biharmonic", "diffusion", "commute"), default="biharmonic")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    a = parser.parse_args()
    if a.seconds <= 0:
        parser.error(f"--seconds must be positive, got {a.seconds}")
    try:
        row = run(a.mesh, a.kernel, a.seconds, a.seed)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    for key, value in row.items():
        print(f"{key}: {value:.5g}" if isinstance(value, float) else f"{key}: {value}")
    if a.out:
        write_json(a.out, row)


if __name__ == "__main__":
    main()
