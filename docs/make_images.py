"""Draw docs/images/sphere_flow.png: samples of a small flow on the sphere at four times. About a minute on one core."""

import math
import tempfile
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import manifoldflow as mf
from manifoldflow.training import TrainConfig, fit

TIMES = (0.0, 0.4, 0.7, 1.0)


def main() -> None:
    """Train, sample, draw."""
    torch.manual_seed(0)
    sphere = mf.Sphere(2)
    spots = sphere.project(torch.tensor([[1.0, 0.3, 0.4], [-0.2, 1.0, -0.3], [-0.5, -0.8, 0.3]]))
    data = mf.WrappedNormal(sphere, scale=0.15, mean=spots[torch.randint(3, (8000,))]).sample((8000,))
    flow = mf.Flow(sphere, model=mf.nn.TangentMLP(sphere, width=96, depth=4), coupling=mf.MinibatchOT())
    with tempfile.TemporaryDirectory() as out:
        batches = [{"x": part} for part in data.split(400)]
        flow = fit(flow, batches, TrainConfig(max_steps=1500, progress=False), out=out)
    grid = mf.linear_grid(40)
    states = flow.sample(2000, times=grid, trajectory=True)
    figure = Figure(figsize=(10, 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    for column, time in enumerate(TIMES):
        x, y, z = states[round(time * 40)].unbind(-1)
        axes = figure.add_subplot(1, len(TIMES), column + 1, projection="mollweide")
        axes.scatter(torch.atan2(y, x), torch.asin(z.clamp(-1, 1)), s=1.0, linewidths=0, color="#1f5fa8")
        axes.set_title(f"t = {time:g}", fontsize=10)
        axes.set_xticks([math.radians(a) for a in range(-120, 121, 60)], [])
        axes.set_yticks([math.radians(a) for a in range(-60, 61, 30)], [])
        axes.grid(alpha=0.4)
    figure.savefig(Path(__file__).parent / "images" / "sphere_flow.png", dpi=110)


if __name__ == "__main__":
    main()
