"""Draw the pictures of the documentation: ``python docs/make_images.py [concepts] [paths] [numerics]``, all by default.

concepts trains a small flow on the sphere (a minute on one core); numerics compares with the peers that are installed
(``pip install ".[bench]"``).
"""

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numerics_errors import ANGLES, measure
from torch import Tensor

import manifoldflow as mf
from manifoldflow.paths.interpolant import BumpNoise, StochasticInterpolant
from manifoldflow.training import TrainConfig, fit

IMAGES = Path(__file__).parent / "images"
TIMES = (0.0, 0.4, 0.7, 1.0)
BLUE, GREY, RED, TEAL = "#1f5fa8", "#8a8a8a", "#de4968", "#00a7c4"


def new_figure(width: float, height: float) -> Any:
    """An empty figure with a canvas."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


# ---------------------------------------------------------------- concepts


def trained_flow() -> tuple[mf.Flow, Tensor]:
    """A small flow from the uniform law to three spots on the sphere, and its data."""
    torch.manual_seed(0)
    sphere = mf.Sphere(2)
    spots = sphere.project(torch.tensor([[1.0, 0.3, 0.4], [-0.2, 1.0, -0.3], [-0.5, -0.8, 0.3]]))
    data = mf.WrappedNormal(sphere, scale=0.15, mean=spots[torch.randint(3, (8000,))]).sample((8000,))
    flow = mf.Flow(sphere, model=mf.nn.TangentMLP(sphere, width=96, depth=4), coupling=mf.MinibatchOT())
    with tempfile.TemporaryDirectory() as out:
        batches = [{"x": part} for part in data.split(400)]
        flow = fit(flow, batches, TrainConfig(max_steps=1500, progress=False), out=out)
    return flow, data


def draw_sphere_flow(flow: mf.Flow) -> None:
    """Samples at four times."""
    states = flow.sample(2000, times=mf.linear_grid(40), trajectory=True)
    figure = new_figure(10, 2.2)
    for column, time in enumerate(TIMES):
        x, y, z = states[round(time * 40)].unbind(-1)
        axes = figure.add_subplot(1, len(TIMES), column + 1, projection="mollweide")
        axes.scatter(torch.atan2(y, x), torch.asin(z.clamp(-1, 1)), s=1.0, linewidths=0, color=BLUE)
        axes.set_title(f"t = {time:g}", fontsize=10)
        axes.set_xticks([math.radians(a) for a in range(-120, 121, 60)], [])
        axes.set_yticks([math.radians(a) for a in range(-60, 61, 30)], [])
        axes.grid(alpha=0.4)
    figure.savefig(IMAGES / "sphere_flow.png", dpi=110)


def view(x: Any, azimuth: float = 50.0, elevation: float = 18.0) -> np.ndarray:
    """Vectors ``(..., 3)`` as seen from outside: right, up, towards the eye."""
    a, e = math.radians(azimuth), math.radians(elevation)
    right = [-math.sin(a), math.cos(a), 0.0]
    up = [-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e)]
    eye = [math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]
    return np.asarray(x, float) @ np.array([right, up, eye]).T


def globe(axes: Any, title: str) -> None:
    """An empty sphere."""
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), 1, facecolor="#f6f6f4", edgecolor="#222222", linewidth=0.9, zorder=0))
    turn = np.linspace(-np.pi, np.pi, 181)
    lines = [np.stack([np.cos(b) * np.cos(turn), np.cos(b) * np.sin(turn), 0 * turn + np.sin(b)], -1)
             for b in np.radians([-60, -30, 0, 30, 60])]  # fmt: skip
    lines += [np.stack([np.cos(turn) * np.cos(b), np.cos(turn) * np.sin(b), np.sin(turn)], -1)
              for b in np.radians(range(0, 180, 30))]  # fmt: skip
    for line in lines:
        curve(axes, line, color="#bbbbbb", linewidth=0.5, zorder=1)
    axes.set(xlim=(-1.04, 1.04), ylim=(-1.04, 1.04), aspect="equal")
    axes.axis("off")
    axes.set_title(title, fontsize=11)


def curve(axes: Any, points: Any, **style: Any) -> None:
    """The part of a curve that is on this side."""
    seen = view(points)
    seen[seen[:, 2] < 0] = np.nan
    axes.plot(seen[:, 0], seen[:, 1], **style)


def dots(axes: Any, points: Any, **style: Any) -> None:
    """The points on this side."""
    seen = view(points)
    seen = seen[seen[:, 2] > 0]
    axes.scatter(seen[:, 0], seen[:, 1], **{"linewidths": 0, "zorder": 4} | style)


def draw_concepts(flow: mf.Flow, data: Tensor) -> None:
    """Space, path, velocity, kernel and density on one sphere."""
    from manifoldflow.tasks.densities.plot_style import density_colours

    sphere = mf.Sphere(2)
    generator = torch.Generator().manual_seed(4)
    figure = new_figure(13.6, 4.15)
    axes = [figure.add_subplot(1, 4, i + 1) for i in range(4)]

    globe(axes[0], "space and path\ngeodesics from source to data")
    x0 = sphere.sample_uniform((90,), generator=generator)
    x1 = data[torch.randint(len(data), (90,), generator=generator)]
    x0, x1 = mf.MinibatchOT()(x0, x1, spaces=sphere)
    assert isinstance(x0, Tensor) and isinstance(x1, Tensor)
    ways = torch.stack([sphere.geodesic(x0, x1, t)[0] for t in torch.linspace(0, 1, 41)], 1)
    for way in ways:
        curve(axes[0], way, color=GREY, linewidth=0.7, zorder=2)
    middle = sphere.geodesic(x0, x1, torch.tensor(0.5))[0]
    dots(axes[0], x0, s=14, color=TEAL)
    dots(axes[0], middle, s=7, color="#444444")
    dots(axes[0], x1, s=12, color=BLUE)

    globe(axes[1], "what the network learns\nthe velocity at t = 0.5")
    index = torch.arange(700) + 0.5  # an even spiral of points
    height, turn = 1 - 2 * index / 700, index * math.pi * (1 + 5**0.5)
    flat = (1 - height**2).sqrt()
    places = torch.stack([flat * turn.cos(), flat * turn.sin(), height], -1)
    with torch.no_grad():
        velocity = flow.velocity(places, torch.tensor(0.5))
    assert isinstance(velocity, Tensor)
    at, arrow = view(places), view(velocity)
    kept = at[:, 2] > 0.08
    speed = np.linalg.norm(np.asarray(velocity), axis=-1)[kept]
    axes[1].quiver(
        at[kept, 0], at[kept, 1], arrow[kept, 0], arrow[kept, 1], speed,
        cmap="viridis_r", scale=14, width=0.0055, zorder=3, clim=(0, 1.6),
    )  # fmt: skip

    globe(axes[2], "kernel\n20 steps of the sampler")
    start = sphere.sample_uniform((110,), generator=generator)
    states = flow.sample(x0=start, times=mf.linear_grid(20), trajectory=True, method="midpoint")
    between = torch.linspace(0, 1, 5).unsqueeze(-1).expand(5, len(start))
    pieces = [
        sphere.geodesic(states[i].expand(5, -1, 3), states[i + 1].expand(5, -1, 3), between)[0] for i in range(20)
    ]
    for fine in torch.cat(pieces).transpose(0, 1):
        curve(axes[2], fine, color=GREY, linewidth=0.7, zorder=2)
    dots(axes[2], states[::4].reshape(-1, 3), s=4, color="#444444")
    dots(axes[2], states[0], s=14, color=TEAL)
    dots(axes[2], states[-1], s=12, color=BLUE)

    globe(axes[3], "density\nlog_prob and samples")
    side = (np.arange(150) + 0.5) / 75 - 1
    right, up = np.meshgrid(side, side)
    inside = right**2 + up**2 < 1
    frame = view(np.eye(3))  # column k of its transpose is an axis of the view
    flat_points = np.stack([right, up, np.sqrt(np.clip(1 - right**2 - up**2, 0, 1))], -1)[inside] @ frame.T
    value = np.full(right.shape, np.nan)
    value[inside] = flow.log_prob(torch.from_numpy(flat_points).float(), steps=20).numpy() / math.log(10)
    from matplotlib.patches import Circle

    rim = Circle((0, 0), 1, facecolor="none", edgecolor="#222222", linewidth=0.9, zorder=5)
    axes[3].add_patch(rim)
    image = axes[3].imshow(
        value, origin="lower", extent=(-1, 1, -1, 1), cmap=density_colours(), vmin=-2.5, vmax=0.6, zorder=0.5
    )
    image.set_clip_path(rim)
    dots(axes[3], flow.sample(500, steps=20, generator=generator), s=3, color=TEAL)
    bar = figure.colorbar(image, ax=axes[3], shrink=0.6, aspect=25, extend="min")
    bar.set_label("log₁₀ density per steradian", fontsize=9)
    bar.outline.set_visible(False)
    handles = [axes[0].scatter([], [], s=18, color=c, label=n) for c, n in
               ((TEAL, "source, t = 0"), ("#444444", "between"), (BLUE, "data or sample, t = 1"))]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(IMAGES / "concepts_sphere.png", dpi=120)


# ---------------------------------------------------------------- paths


def draw_paths() -> None:
    """Couplings on a torus, schedules, and the stochastic interpolant."""
    torus = mf.Torus(2, 2 * math.pi)
    generator = torch.Generator().manual_seed(2)
    x0 = torus.sample_uniform((60,), generator=generator)
    angle = 2 * math.pi * torch.rand(60, generator=generator)
    x1 = torch.stack([math.pi + 1.5 * angle.cos(), math.pi + 1.5 * angle.sin()], -1)
    x1 = x1 + 0.12 * torch.randn(60, 2, generator=generator)
    figure = new_figure(13.6, 3.7)
    pairs = {"Independent()": (x0, x1), "MinibatchOT()": mf.MinibatchOT()(x0, x1, spaces=torus)}
    for column, (name, (a, b)) in enumerate(pairs.items()):
        axes = figure.add_subplot(1, 4, column + 1)
        assert isinstance(a, Tensor) and isinstance(b, Tensor)
        start, step = a, torus.log(a, b)
        for turn in np.ndindex(3, 3):  # images beyond the edges
            shift = 2 * math.pi * (torch.tensor(turn) - 1)
            ends = torch.stack([start + shift, start + step + shift], 1)
            for line in ends:
                axes.plot(line[:, 0], line[:, 1], color=GREY, linewidth=0.7)
        axes.scatter(a[:, 0], a[:, 1], s=14, color=TEAL, linewidths=0, zorder=3)
        axes.scatter(b[:, 0], b[:, 1], s=14, color=BLUE, linewidths=0, zorder=3)
        mean = float(torus.dist(a, b).square().mean())
        axes.set(xlim=(0, 2 * math.pi), ylim=(0, 2 * math.pi), aspect="equal", xticks=[], yticks=[])
        axes.set_title(f"coupling {name}\nmean squared length {mean:.2f}", fontsize=10)
    axes = figure.add_subplot(1, 4, 3)
    t = torch.linspace(0, 1, 201)
    for schedule, label in (
        (mf.Linear(), "Linear()"),
        (mf.Cosine(), "Cosine()"),
        (mf.Polynomial(2.0), "Polynomial(2)"),
        (mf.Late(0.01), "Late(0.01)"),
        (mf.Exponential(10.0), "Exponential(10)"),
    ):
        axes.plot(t, schedule.k(t), label=label, linewidth=1.6)
    axes.set(xlabel="t", ylabel="k(t)", xlim=(0, 1), ylim=(0, 1.01), aspect="equal")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.grid(alpha=0.3)
    axes.set_title("schedules and time warps\n", fontsize=10)
    axes = figure.add_subplot(1, 4, 4)
    line, count = mf.Euclidean(1), 40
    noisy = StochasticInterpolant(BumpNoise(0.35)).bind(line)
    for begin, end, colour in ((-1.0, 0.9, BLUE), (1.0, -0.7, RED)):
        noise = torch.randn(count, 1, generator=generator)
        for z in noise:
            way = begin + (end - begin) * t + noisy.noise.level(t) * z
            axes.plot(t, way, color=colour, alpha=0.22, linewidth=0.8)
        axes.plot(t, begin + (end - begin) * t, color=colour, linewidth=1.6)
    axes.set(xlabel="t", ylabel="x", xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.set_title("StochasticInterpolant(BumpNoise(0.35))\ntwo pairs, 40 draws of each", fontsize=10)
    figure.savefig(IMAGES / "paths_choices.png", dpi=120)


# ---------------------------------------------------------------- numerics

FLOOR = 2e-9


def position(angle: float) -> float:
    """Angles on an axis that is logarithmic towards 0 and towards pi."""
    middle = math.log10(math.pi / 2)
    if angle <= math.pi / 2:
        return math.log10(max(angle, 1e-8)) - middle
    return middle - math.log10(max(math.pi - angle, 1e-9))


def draw_numerics() -> None:
    """Largest errors of the libraries at hand, by angle."""
    table = measure()
    colours = {"manifoldflow": BLUE, "flow_matching": RED, "geoopt": "#e09f3e", "roma": RED, "pypose": "#e09f3e"}
    titles = {
        ("the sphere", "log"): "length of log_x y on S²",
        ("the sphere", "exp"): "exp_x u on S²",
        ("the sphere", "half"): "half-way point on S²",
        ("rotations", "log"): "angle of log of a rotation matrix",
        ("rotations", "exp"): "matrix of a rotation vector",
        ("rotations", "half"): "half-way quaternion",
    }
    figure = new_figure(12.5, 6.6)
    at = [position(a) for a in ANGLES]
    marks = [1e-8, 1e-6, 1e-4, 1e-2, math.pi / 2, math.pi - 1e-2, math.pi - 1e-4, math.pi - 1e-6, math.pi]
    names = [
        "$10^{-8}$",
        "$10^{-6}$",
        "$10^{-4}$",
        "$10^{-2}$",
        "π/2",
        "π−$10^{-2}$",
        "π−$10^{-4}$",
        "π−$10^{-6}$",
        "π",
    ]
    for number, ((space, kind), title) in enumerate(titles.items()):
        axes = figure.add_subplot(2, 3, number + 1)
        for library, rows in reversed(table[space].items()):
            value = np.array(rows[kind])
            style = {"color": colours[library], "zorder": 4 if library == "manifoldflow" else 3}
            shown = np.clip(value, FLOOR, None)
            axes.plot(at, shown, label=library, linewidth=2.2 if library == "manifoldflow" else 1.5, **style)
            lost = np.isnan(value)
            axes.scatter(np.array(at)[lost], np.full(lost.sum(), 10.0), marker="x", s=16, **style)
            if lost.any():
                axes.annotate("NaN", (np.array(at)[lost][0], 10.0), (0, 6), textcoords="offset points", fontsize=7)
        axes.axhline(6e-8, color="#555555", linewidth=0.8, linestyle=":", zorder=1)
        axes.set(yscale="log", ylim=(FLOOR, 30), xlim=(at[0] - 0.3, at[-1] + 0.3))
        axes.set_yticks([10.0**k for k in range(-8, 1, 2)])
        axes.set_xticks([position(m) for m in marks], names, fontsize=7.5, rotation=35)
        axes.grid(alpha=0.3)
        axes.set_title(title, fontsize=10)
        if number % 3 == 0:
            axes.set_ylabel("largest error of 200 (radians)", fontsize=9)
        if number % 3 == 2:
            axes.legend(frameon=False, fontsize=8.5, loc="upper center")
        if number >= 3:
            axes.set_xlabel("angle (radians)", fontsize=9)
    figure.suptitle(
        "float32 against float64 on the same inputs; dotted: half a unit in the last place of 1", fontsize=10
    )
    figure.savefig(IMAGES / "numerics_errors.png", dpi=120)
    for space, libraries in table.items():
        for library, rows in libraries.items():
            worst = {k: (max(v), ANGLES[int(np.argmax(v))]) for k, v in rows.items()}
            print(space, library, {k: f"{e:.2g} at {a:.10g}" for k, (e, a) in worst.items()})


def main() -> None:
    """All pictures, or those named."""
    wanted = sys.argv[1:] or ["concepts", "paths", "numerics"]
    if unknown := set(wanted) - {"concepts", "paths", "numerics"}:
        raise SystemExit(f"unknown pictures {sorted(unknown)}; there are concepts, paths, numerics")
    if "numerics" in wanted:
        draw_numerics()
    if "paths" in wanted:
        draw_paths()
    if "concepts" in wanted:
        flow, data = trained_flow()
        draw_sphere_flow(flow)
        draw_concepts(flow, data)


if __name__ == "__main__":
    main()
