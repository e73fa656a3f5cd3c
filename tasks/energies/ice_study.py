"""How much work is lost when hot ice is mapped to cold ice? By nothing, by a rule without learning, by a rigid-body flow.

    python -m manifoldflow.tasks.energies.ice_study --out runs/ice

Ice XI of 16 TIP4P-Ew molecules, 250 K to 100 K. The molecular dynamics (five temperatures, about 20 minutes of one core)
are made at first and kept in the folder; then the flow is trained on the first three quarters of the hot frames and judged on
the rest. All free energies are differences of reduced ones, F / kT at 100 K minus F / kT at 250 K, of the whole crystal,
positions only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from manifoldflow.checkpoint import load, save
from manifoldflow.energies import BoltzmannGenerator, Ensemble, effective_share, many_states, one_sided, two_sided
from manifoldflow.energies.openmm import GAS_CONSTANT
from manifoldflow.files import atomic, open_npz, write_json
from manifoldflow.flows import Layer
from manifoldflow.tasks.common.files import find_shared
from manifoldflow.tasks.common.plots import new_figure, save_figure
from manifoldflow.tasks.energies.ice import (
    Crystal,
    IceConfig,
    IcePotential,
    Shrink,
    build,
    find_symmetries,
    make_bodies,
    make_energy,
    read_crystal,
    simulate_crystal,
)
from manifoldflow.training import TrainConfig, fit

LADDER = (250.0, 198.8177, 158.1139, 125.7433, 100.0)
"""Kelvin, geometric."""
REFERENCE, REFERENCE_ERROR = -669.711, 0.054
"""MBAR of the authors of rigid body flows, 5 replicas of 10,000 frames; their flow: effective share 23.75 %."""
DRIFT = 0.005
"""Standard deviation of the mean displacement, nm."""


def trajectory(
    crystal: Crystal, temperature: float, frames: int, out: Path, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (nm) and energies (kJ/mol), simulated once and kept."""
    path = out / f"md_{temperature:.0f}K.npz"
    if not path.exists():
        print(f"molecular dynamics at {temperature:.0f} K: {frames} frames", flush=True)
        every = 100 if temperature == LADDER[0] else 80
        positions, energies = simulate_crystal(crystal, temperature, frames, every=every, seed=seed)
        with atomic(path) as fresh, open(fresh, "wb") as file:
            np.savez(file, positions=positions, energy=energies)
    data = open_npz(path)
    return data["positions"], data["energy"]


def inefficiency(energy: np.ndarray) -> float:
    """How many frames make an independent one: 1 + 2 times the sum of the autocorrelation down to 0.05."""
    e = energy - energy.mean()
    lags = min(len(e) // 4, 100)
    rho = np.array([np.mean(e[: len(e) - k] * e[k:]) for k in range(lags)]) / np.mean(e * e)
    end = int(np.argmax(rho < 0.05)) or lags
    return 1 + 2 * float(rho[1:end].sum())


def ladder_difference(energies: Sequence[np.ndarray], repeats: int = 40, seed: int = 0) -> tuple[float, float]:
    """Free-energy difference from the coldest to the hottest of the ladder by MBAR, with a bootstrap error.

    Args:
        energies: kJ/mol, of every temperature of :data:`LADDER`, thinned to independent frames.
        repeats: of the bootstrap.
        seed: of the bootstrap.
    """
    beta = torch.tensor([1 / (GAS_CONSTANT * t) for t in LADDER], dtype=torch.float64)
    some = [torch.as_tensor(e, dtype=torch.float64) for e in energies]
    counts = torch.tensor([len(e) for e in some])

    def estimate(sets: list[Tensor]) -> float:
        return float(many_states(beta.unsqueeze(-1) * torch.cat(sets), counts, tolerance=1e-7)[-1])

    generator = torch.Generator().manual_seed(seed)
    again = [estimate([e[torch.randint(len(e), (len(e),), generator=generator)] for e in some]) for _ in range(repeats)]
    return estimate(some), float(np.std(again, ddof=1))


def judge(
    layer: Layer, hot: IcePotential, cold: IcePotential, held: Ensemble, cold_state: dict[str, Tensor]
) -> tuple[dict[str, Any], Tensor, Tensor]:
    """One map: its weights on hot frames that it has not seen, and the two-sided difference with frames of the cold crystal.

    Returns:
        a row of the table, the energies of the mapped frames and their log-weights.
    """
    model = BoltzmannGenerator(held, layer, cold)
    z = held.take(torch.arange(len(held)), generator=torch.Generator().manual_seed(0))
    parts = [model.weigh({k: v[i : i + 250] for k, v in z.items()}) for i in range(0, len(held), 250)]  # type: ignore[union-attr]
    log_weight, energy = (torch.cat([p[i] for p in parts]) for i in (1, 3))
    there, both = one_sided(-log_weight), two_sided(-log_weight, model.reverse_work(cold_state))
    row = {
        "frames": len(held),
        "effective share": float(effective_share(log_weight.double())),
        "mean work": float(-log_weight.mean()),
        "difference, one-sided": float(there.value),
        "its error": float(there.error),
        "difference, two-sided": float(both.value),
        "its error, two-sided": float(both.error),
    }
    return row, energy, log_weight


class Nothing(Shrink):
    """The identity."""

    def __init__(self) -> None:
        super().__init__(1.0)


def draw(energies: dict[str, np.ndarray], weights: dict[str, Tensor], rows: dict[str, Any], out: Path) -> None:
    """Energies of mapped frames beside those of the cold crystal; the works; the differences."""
    figure = new_figure(10.5, 3.2, "energies")
    left, middle, right = figure.subplots(1, 3)
    span = np.linspace(energies["MD, 100 K"].min() - 10, energies["MD, 100 K"].max() + 45, 70)
    for name, e in energies.items():
        left.hist(
            e, span, density=True, histtype="step", label=name, **({"color": "k"} if name.startswith("MD") else {})
        )
    left.set(xlabel="energy (kJ/mol)", ylabel="density")
    left.legend(fontsize=7)
    for name, w in weights.items():
        middle.hist((-w).clamp(-690, -620).numpy(), 80, density=True, histtype="step", label=name)
    middle.axvline(REFERENCE, color="k", lw=0.8)
    middle.set(xlabel="work (kT)", ylabel="density", xlim=(-676, -640))
    middle.legend(fontsize=7)
    names = list(rows)
    right.axvspan(REFERENCE - REFERENCE_ERROR, REFERENCE + REFERENCE_ERROR, color="0.85")
    for k, name in enumerate(names):
        for key, error, mark in (
            ("difference, one-sided", "its error", "o"),
            ("difference, two-sided", "its error, two-sided", "s"),
        ):
            if key in rows[name]:
                right.errorbar(rows[name][key], k + 0.12 * (mark == "s"), xerr=rows[name][error], fmt=mark, ms=4)
    right.set(yticks=range(len(names)), yticklabels=names, xlim=(-670.1, -669.3), xlabel="free-energy difference (kT)")
    save_figure(figure, out / "ice.png", dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", default=None, help="folder with iceXI_T250_N16.json; that of the shared data if absent"
    )
    parser.add_argument("--out", required=True, help="folder")
    parser.add_argument("--steps", type=int, default=1600, help="of training; 0 for the rules alone")
    parser.add_argument("--frames", type=int, default=8000, help="at 250 K; 1,500 at each of the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", default=None, help="weights of a flow: judge it, train nothing")
    a = parser.parse_args(arguments)
    out = Path(a.out)
    out.mkdir(parents=True, exist_ok=True)

    def crystal_of(t: float) -> Crystal:
        name = f"iceXI_T{250 if t > 130 else 100}_N16.json"
        return read_crystal(Path(a.data) / name if a.data else find_shared(f"rigid/{name}"))

    made = [trajectory(crystal_of(t), t, a.frames if k == 0 else 1500, out, seed=k + 1) for k, t in enumerate(LADDER)]
    energies = [e[:: max(1, round(inefficiency(e)))] for _, e in made]
    value, error = ladder_difference(energies)
    rows: dict[str, Any] = {
        "reference": {"difference, two-sided": REFERENCE, "its error, two-sided": REFERENCE_ERROR},
        "MBAR": {
            "frames": [len(e) for e in energies],
            "difference, two-sided": value,
            "its error, two-sided": error,
        },
    }
    positions = torch.as_tensor(made[0][0])
    cut = 3 * len(positions) // 4
    bodies = make_bodies(positions[:cut])
    hot = IcePotential(
        make_energy(crystal_of(LADDER[0]), LADDER[0]), bodies, DRIFT, find_symmetries(bodies, crystal_of(LADDER[0]).box)
    )
    cold = IcePotential(hot.function.at(LADDER[-1]), bodies, DRIFT)
    state = hot.state(positions)
    held = Ensemble({k: v[cut:] for k, v in state.items()}, hot.reduced, hot.refresh)
    thin = max(1, round(inefficiency(made[-1][1])))
    cold_state = cold.refresh(cold.state(torch.as_tensor(made[-1][0][::thin])), torch.Generator().manual_seed(1))
    assert not isinstance(cold_state, Tensor)
    layers: dict[str, Layer] = {"nothing": Nothing(), "harmonic rule": Shrink((LADDER[-1] / LADDER[0]) ** 0.5)}
    shown, weights = {"MD, 100 K": made[-1][1]}, {}

    def add(name: str, layer: Layer) -> None:
        rows[name], energy, log_weight = judge(layer, hot, cold, held, cold_state)
        if name != "nothing":
            shown[name], weights[name] = energy.double().numpy() * cold.function.kt, log_weight
        print(name, rows[name], flush=True)
        write_json(out / "report.json", rows)

    for name, layer in layers.items():
        add(name, layer)
    if a.steps or a.checkpoint:
        torch.manual_seed(a.seed)
        model = build(IceConfig(), hot, cold, {k: v[:cut] for k, v in state.items()})
        if a.checkpoint:
            load(a.checkpoint, into=model)
        else:
            config = TrainConfig(
                max_steps=a.steps, learning_rate=1e-3, weight_decay=0.0, ema=0.99, gradient_clip=20.0, warmup_steps=50,
                seed=a.seed,
            )  # fmt: skip
            model = fit(model, [{"size": 32}], config, out=out / "flow")
            save(model, out / "model.safetensors")
        add("flow", model.flow)
    draw(shown, weights, rows, out)


if __name__ == "__main__":
    main()
