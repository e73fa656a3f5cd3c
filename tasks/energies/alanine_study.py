"""Can a flow sample alanine dipeptide in its true energy? From the stored frames, or from the energy alone.

    python -m manifoldflow.tasks.energies.alanine_study --out runs/alanine
    python -m manifoldflow.tasks.energies.alanine_study --out runs/alanine_energy --from_energy

Left in the folder: the checkpoint, ``report.json``, and pictures of the torsions, of the free energy along phi, of the
energies and of the weights. Every number is of the potential of OpenMM; weights are never cut.
"""

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifoldflow.checkpoint import save
from manifoldflow.energies import BoltzmannGenerator, Weighted, cooling
from manifoldflow.files import write_json
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.common.plots import new_figure, save_figure
from manifoldflow.tasks.energies.alanine import AlanineConfig, Frames, build, measure, read_frames
from manifoldflow.training import TrainConfig, fit

BINS = 36
"""Of phi, 10 degrees each."""
LEAST = 100
"""Frames that a bin of the stored trajectories must have to be compared."""


class Profile:
    """The free energy along phi of the stored trajectories, with an error from the differences between them.

    Args:
        frames: the trajectories.
    """

    def __init__(self, frames: Frames) -> None:
        edges = np.linspace(-180, 180, BINS + 1)
        self.centres = 0.5 * (edges[1:] + edges[:-1])
        self.edges = edges
        self.count = np.histogram(frames.phi, edges)[0]
        share = np.stack([np.histogram(p, edges, density=True)[0] for p in np.array_split(frames.phi, 8)])
        self.density = self.count / self.count.sum() / (edges[1] - edges[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            self.energy = -np.log(self.density)
            self.error = share.std(0, ddof=1) / 8**0.5 / self.density

    def of(self, made: Weighted) -> np.ndarray:
        """The free energy of weighted samples, in kT, on the same bins; infinite where there are none."""
        phi = _degrees(made.x["turn"][:, 0])
        density = np.histogram(phi, self.edges, weights=made.weights.numpy(), density=True)[0]
        with np.errstate(divide="ignore"):
            return -np.log(density)

    def gap(self, made: Weighted) -> dict[str, float]:
        """How far it is from the stored one where these have :data:`LEAST` frames, in kT."""
        seen = self.count >= LEAST
        off = np.abs(self.of(made)[seen] - self.energy[seen])
        return {
            "bins compared": int(seen.sum()),
            "largest gap (kT)": float(off.max()),
            "mean gap (kT)": float(off.mean()),
            "at phi (degrees)": float(self.centres[seen][off.argmax()]),
            "largest error of the stored (kT)": float(self.error[seen].max()),
        }


def data_batches(state: dict[str, Tensor], size: int, own: int = 0) -> Any:
    """Rows at random, the same in a step of a continued run, and beside them ``own`` samples of the flow for reverse KL."""
    count = len(state["line"])

    def batches(start: int) -> Iterator[dict[str, Any]]:
        for step in itertools.count(start):
            rows = torch.randint(count, (size,), generator=torch.Generator().manual_seed(step))
            yield {"x": {k: v[rows] for k, v in state.items()}, **({"size": own} if own else {})}

    return batches


def train(
    frames: Frames, out: Path, *, first_steps: int, own_steps: int, from_energy: bool, hot: float, seed: int
) -> BoltzmannGenerator:
    """Train a generator in two stages and save it.

    First the stored frames alone (forward KL; few steps, as 8,000 frames are soon learned by heart), then mostly reverse KL on
    the flow's own samples, with a few frames beside them. If no frame is to be shown: reverse KL in both, hot at first.

    Args:
        frames: the trajectories; from the energy alone, of them the means and deviations of the stiff coordinates are used.
        out: folder.
        first_steps, own_steps: of the stages.
        from_energy: no frame is shown.
        hot: first temperature in units of 300 K, for ``from_energy``.
        seed: of everything.
    """
    positions = torch.as_tensor(frames.positions)
    mean, scale = measure(positions)
    torch.manual_seed(seed)
    model = build(AlanineConfig(mean=mean.tolist(), scale=scale.tolist()))
    common: dict[str, Any] = {"weight_decay": 0.0, "gradient_clip": 10.0, "seed": seed, "log_every": 25, "ema": 0.98}
    if from_energy:
        first, own = cooling(256, hot, max(first_steps // 2, 1)), cooling(256, 1.0, 1)
    else:
        made = model.potential.state(positions.double())  # type: ignore[union-attr]
        state = {k: v.float() for k, v in made.items()}
        first, own = data_batches(state, 256), data_batches(state, 64, own=192)
    config = TrainConfig(max_steps=first_steps, learning_rate=1e-3, warmup_steps=20, schedule="constant", **common)
    model = fit(model, first, config, out=out / "first")
    model.forward_weight = 0.2
    config = TrainConfig(max_steps=own_steps, learning_rate=3e-4, warmup_steps=30, decay=0.6, **common)
    model = fit(model, own, config, out=out / "own")
    save(model, out / "model.safetensors")
    return model


def judge(model: BoltzmannGenerator, frames: Frames, size: int, seed: int = 0) -> tuple[Weighted, dict[str, Any]]:
    """Samples with weights, and what they say.

    Args:
        model: the generator.
        frames: what it is compared with.
        size: number of samples.
        seed: of the draws.
    """
    made = model.weighted(size, generator=torch.Generator().manual_seed(seed))
    profile = Profile(frames)
    left = made.x["turn"][:, 0] < math.pi  # phi in (0, 180)
    report = {
        "samples": size,
        "effective share": made.effective_share,
        "log Z": float(made.log_z.value),
        "error of log Z": float(made.log_z.error),
        "largest weight": float(made.weights.max()),
        "share of phi > 0, unweighted": float(left.float().mean()),
        "share of phi > 0": float(made.weights[left].sum()),
        "share of phi > 0, stored": float((frames.phi > 0).mean()),
        **profile.gap(made),
    }
    return made, report


def draw(made: Weighted, frames: Frames, model: BoltzmannGenerator, out: Path) -> None:
    """The pictures: torsions, free energy along phi, energies, weights."""
    profile = Profile(frames)
    phi, psi = _degrees(made.x["turn"][:, 0]), _degrees(made.x["turn"][:, 1])
    figure = new_figure(10.5, 3.4, "energies")
    axes = figure.subplots(1, 3, sharey=True)
    edges = np.linspace(-180, 180, 61)
    both = [("stored trajectories", frames.phi, frames.psi, None), ("samples", phi, psi, None)]
    tables = [(t, np.histogram2d(x, y, edges, weights=w, density=True)[0]) for t, x, y, w in both]
    tables.append(("samples, weighted", np.histogram2d(phi, psi, edges, weights=made.weights.numpy(), density=True)[0]))
    for axis, (title, table) in zip(axes, tables, strict=True):
        with np.errstate(divide="ignore"):
            shown = -np.log(table.T)
        shown -= np.nanmin(-np.log(tables[0][1].max()))
        picture = axis.imshow(shown, origin="lower", extent=(-180, 180, -180, 180), cmap="viridis_r", vmin=0, vmax=9)
        axis.set(title=title, xlabel="phi (degrees)", xticks=range(-180, 181, 90), yticks=range(-180, 181, 90))
    axes[0].set_ylabel("psi (degrees)")
    figure.colorbar(picture, ax=axes, label="free energy (kT)")
    save_figure(figure, out / "torsions.png", dpi=90)

    figure = new_figure(10.5, 3.2, "energies")
    left, middle, right = figure.subplots(1, 3)
    seen = profile.count >= LEAST
    left.errorbar(
        profile.centres,
        profile.energy,
        profile.error,
        fmt="o",
        ms=3,
        color="0.6",
        label="stored, fewer than 100 frames",
    )
    left.errorbar(
        profile.centres[seen], profile.energy[seen], profile.error[seen], fmt="o", ms=4, color="k", label="stored"
    )
    left.plot(profile.centres, profile.of(made), color="C1", label="generator, weighted")
    plain = made._replace(log_weight=torch.zeros_like(made.log_weight))
    left.plot(profile.centres, profile.of(plain), ":", color="C0", label="generator")
    left.set(xlabel="phi (degrees)", ylabel="free energy (kT)", xticks=range(-180, 181, 90), ylim=(2, 16))
    left.legend(fontsize=7)
    stored = model.potential.energy(model.potential.state(torch.as_tensor(frames.positions)[::4]))  # type: ignore[union-attr]
    span = np.linspace(float(stored.min()) - 2, float(stored.max()) + 12, 80)
    middle.hist(stored.numpy(), span, density=True, histtype="step", color="k", label="stored")
    energy = made.energy.nan_to_num(1e9).numpy()
    middle.hist(energy, span, density=True, histtype="step", color="C0", ls=":", label="samples")
    middle.hist(
        energy, span, density=True, weights=made.weights.numpy(), histtype="step", color="C1", label="samples, weighted"
    )
    middle.set(xlabel="potential energy (kT)", ylabel="density")
    middle.legend(fontsize=7)
    log_weight = made.log_weight[made.log_weight.isfinite()] - made.log_z.value
    right.hist(log_weight.clamp(-12, 8).numpy(), 100, density=True, color="C0")
    right.set(xlabel="log weight, minus log Z", ylabel="density", title=f"effective share {made.effective_share:.1%}")
    save_figure(figure, out / "profile.png", dpi=90)


def _degrees(angle: Tensor) -> np.ndarray:
    turned = (angle + math.pi).remainder(2 * math.pi) - math.pi
    return np.asarray(turned.double() * (180 / math.pi))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=None, help="alanine_dipeptide.npz; that of the shared data if absent")
    parser.add_argument("--out", required=True, help="folder")
    parser.add_argument("--first_steps", type=int, default=120, help="on the stored frames, or with reverse KL")
    parser.add_argument("--own_steps", type=int, default=280, help="mostly with reverse KL")
    parser.add_argument("--from_energy", action="store_true", help="show no frame: reverse KL, hot at first")
    parser.add_argument("--hot", type=float, default=4.0, help="first temperature over 300 K, with --from_energy")
    parser.add_argument("--samples", type=int, default=100_000, help="to judge by")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default=None, help="judge this one, train nothing")
    a = parser.parse_args(arguments)
    out = Path(a.out)
    frames = read_frames(a.data or find_shared("ensembles/alanine_dipeptide.npz"))
    if a.checkpoint:
        from manifoldflow.checkpoint import load

        model = load(a.checkpoint)
    else:
        model = train(
            frames, out, first_steps=a.first_steps, own_steps=a.own_steps, from_energy=a.from_energy, hot=a.hot, seed=a.seed
        )  # fmt: skip
    made, report = judge(model, frames, a.samples)
    write_json(out / "report.json", report)
    for name, value in report.items():
        print(f"{name}: {value:.5g}")
    draw(made, frames, model, out)


if __name__ == "__main__":
    main()
