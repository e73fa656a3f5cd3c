"""Pictures of samples on their target, and of log Z over energy calls."""

from typing import Any

import torch
from torch import Tensor

from manifoldflow.tasks.common.plots import new_figure
from manifoldflow.tasks.energies.montecarlo import Result
from manifoldflow.tasks.energies.targets import Target, first_two

SAMPLES, EXACT = "#c8553d", "#2f6690"
COLOURS = {
    "smc": "#2f6690", "pt": "#3a7d44", "tb": "#c8553d", "dgfs": "#8e6c88", "pis": "#e0a458", "dds": "#6b705c",
    "adaptive": "#222222",
}  # fmt: skip
NAMES = {
    "smc": "SMC with HMC moves",
    "pt": "parallel tempering",
    "tb": "diffusion, TB",
    "dgfs": "diffusion, SubTB (DGFS)",
    "pis": "diffusion, reverse KL (PIS)",
    "dds": "diffusion, reverse KL (DDS)",
    "adaptive": "diffusion, learned way back",
    "vargrad": "diffusion, VarGrad",
}


def sample_figure(target: Target, result: Result, seed: int = 0, most: int = 4000) -> Any:
    """Samples on the target, marginals of what is seen, weights, and energies.

    Args:
        target: what was sampled.
        result: samples and weights; pictures of a law use samples drawn by weight, the first picture those of the sampler.
        seed: of the exact samples and of the draw by weight.
        most: points shown.
    """
    generator = torch.Generator().manual_seed(seed)
    view = target.view or first_two
    seen = view(result.x).detach()
    share = result.log_weight.double().softmax(0)
    exact = reference_samples(target, 20_000, generator)
    limits = target.limits or _around(seen)
    figure = new_figure(12.5, 6.6, extra="energies")
    grid = figure.add_gridspec(2, 3, width_ratios=(1.35, 1, 1))
    ax = figure.add_subplot(grid[:, 0])
    if exact is not None:
        true = view(exact[0]).detach()
        ax.hist2d(
            true[:, 0].numpy(), true[:, 1].numpy(), bins=90, range=limits, weights=exact[1].numpy(), cmap="Blues",
            rasterized=True,
        )  # fmt: skip
    shown = seen[:most]
    ax.plot(shown[:, 0].numpy(), shown[:, 1].numpy(), ".", ms=2.2, color=SAMPLES, alpha=0.45, rasterized=True)
    ax.set(xlim=limits[0], ylim=limits[1], xlabel=target.axes[0], ylabel=target.axes[1])
    ax.set_title(f"{target.name}: {len(shown):,} samples (red)" + (" on the target" if exact is not None else ""))
    for axis in (0, 1):
        ax = figure.add_subplot(grid[0, 1 + axis])
        options: dict[str, Any] = {"bins": 70, "range": limits[axis], "density": True}
        if exact is not None:
            ax.hist(true[:, axis].numpy(), weights=exact[1].numpy(), color="#b9cfe0", label="target", **options)
        ax.hist(seen[:, axis].numpy(), histtype="step", color=SAMPLES, label="samples", **options)
        if float(result.log_weight.std()) > 0:
            ax.hist(
                seen[:, axis].numpy(), weights=share.numpy(), histtype="step", color="black", ls=":", label="weighted",
                **options,
            )  # fmt: skip
        ax.set(xlabel=target.axes[axis], yticks=[], title=f"marginal of {target.axes[axis]}")
        ax.legend(frameon=False, fontsize=8)
    ax = figure.add_subplot(grid[1, 1])
    weight = (result.log_weight.double() - result.log_z).clamp(-15, 10)
    if float(weight.std()) > 0:
        ax.hist(weight.numpy(), bins=70, color=SAMPLES, alpha=0.8)
        ax.set_xlabel("log weight - log Z")
    else:
        ax.text(0.5, 0.5, "equal weights", ha="center", transform=ax.transAxes)
    ax.set(yticks=[], title=f"weights: effective share {result.share:.2f}")
    ax = figure.add_subplot(grid[1, 2])
    own = -target.log_density(result.x).detach().double()
    low, high = (float(torch.quantile(own, q)) for q in (0.002, 0.99))
    if exact is not None:
        other = -target.log_density(exact[0]).detach().double()
        low, high = min(low, float(other.min())), max(high, float(torch.quantile(other, 0.99)))
        ax.hist(other.numpy(), bins=70, range=(low, high), weights=exact[1].numpy(), density=True, color="#b9cfe0",
                label="target")  # fmt: skip
    ax.hist(own.numpy(), bins=70, range=(low, high), density=True, histtype="step", color=SAMPLES, label="samples")
    ax.set(xlabel="energy (kT)", yticks=[], title="energies")
    ax.legend(frameon=False, fontsize=8)
    return figure


def reference_samples(target: Target, count: int, generator: torch.Generator) -> tuple[Any, Tensor] | None:
    """The target to compare with: exact samples, or uniform ones with weights on compact spaces; None where there is no way."""
    if target.draw is not None:
        return target.draw(count, generator), torch.full((count,), 1 / count, dtype=torch.float64)
    if isinstance(target.space, dict) or target.space.is_linear:
        return None
    x = target.space.sample_uniform((8 * count,), generator=generator)
    return x, target.log_density(x).double().softmax(0)


def curve_figure(rows: dict[str, Any]) -> Any:
    """|log Z error| over energy calls: Monte Carlo to budgets, and trainings as they go on.

    Args:
        rows: of :mod:`manifoldflow.tasks.energies.study`: each with ``target``, ``method``, ``seed`` and ``curve``, a list of
            ``calls`` and ``off``.
    """
    targets = list(dict.fromkeys(row["target"] for row in rows.values() if row.get("curve")))
    figure = new_figure(4.6 * max(1, len(targets)), 4.2, extra="energies")
    for i, name in enumerate(targets):
        ax = figure.add_subplot(1, len(targets), i + 1)
        for method in dict.fromkeys(row["method"] for row in rows.values()):
            curves = [
                r["curve"] for r in rows.values() if r["target"] == name and r["method"] == method and r.get("curve")
            ]
            if not curves:
                continue
            length = min(map(len, curves))
            calls = torch.tensor([[p["calls"] for p in c[:length]] for c in curves], dtype=torch.float64).mean(0)
            off = torch.tensor([[abs(p["off"]) for p in c[:length]] for c in curves], dtype=torch.float64)
            colour = COLOURS.get(method, "black")
            ax.plot(calls, off.mean(0).clamp_min(1e-4), "o-", ms=3, color=colour, label=NAMES.get(method, method))
            ax.fill_between(
                calls, off.amin(0).clamp_min(1e-4), off.amax(0).clamp_min(1e-4), color=colour, alpha=0.15, lw=0
            )
        ax.set(xscale="log", yscale="log", xlabel="energy calls", title=name)
        if i == 0:
            ax.set_ylabel("|error of log Z|, mean and range over seeds")
        ax.legend(frameon=False, fontsize=8)
        ax.grid(alpha=0.25)
    return figure


def _around(seen: Tensor) -> tuple[tuple[float, float], tuple[float, float]]:
    low, high = torch.quantile(seen.double(), torch.tensor([0.002, 0.998], dtype=torch.float64), dim=0)
    wide = (high - low).clamp_min(1e-3) * 0.1
    return tuple((float(a - w), float(b + w)) for a, b, w in zip(low, high, wide, strict=True))  # type: ignore[return-value]
