"""A flow of single rotations for the target ``rotations2``: the smallest test of layers that know what a rotation is.

    python -m manifoldflow.tasks.energies.rotations --seeds 3

The energy alone is shown, five times hotter at first. log Z is known by quadrature.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from manifoldflow.distributions import Uniform
from manifoldflow.energies import BoltzmannGenerator, Product, reweighting
from manifoldflow.flows import rotation_flow
from manifoldflow.manifolds import UnitQuaternion
from manifoldflow.manifolds.rotation import quaternion_to_matrix
from manifoldflow.state import State
from manifoldflow.tasks.energies.targets import load_target
from manifoldflow.training import TrainConfig, fit


@dataclass
class RotationConfig:
    """A flow of single rotations.

    Args:
        layers: groups of couplings.
        bins, width: of splines and networks.
        seed: of the constant turns.
    """

    layers: int = 4
    bins: int = 8
    width: int = 48
    seed: int = 0


def build(config: RotationConfig | dict[str, Any] | None = None) -> BoltzmannGenerator:
    """A generator of ``rotations2`` as unit quaternions, from the uniform law."""
    c = config if isinstance(config, RotationConfig) else RotationConfig(**(config or {}))
    log_density = load_target("rotations2").log_density

    def energy(q: State) -> Tensor:
        assert isinstance(q, Tensor)
        return -log_density(quaternion_to_matrix(q))

    flow = rotation_flow(c.layers, bins=c.bins, width=c.width, seed=c.seed)
    made = BoltzmannGenerator(Product(Uniform(UnitQuaternion())), flow, energy)
    made.builder, made.config = "manifoldflow.tasks.energies.rotations:build", asdict(c)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with several seeds and print what each reaches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of 256 samples each")
    a = parser.parse_args(arguments)
    target = load_target("rotations2")
    assert target.log_z is not None and target.modes is not None
    for seed in range(a.seeds):
        torch.manual_seed(seed)
        config = TrainConfig(
            max_steps=a.steps, learning_rate=4e-3, weight_decay=0.0, ema=0.99, gradient_clip=5.0, warmup_steps=20,
            progress=False, seed=seed,
        )  # fmt: skip
        begin = time.process_time()
        model = build({"seed": seed})
        batches = reweighting(model, 256, hot=5.0, steps=a.steps // 2, buffer=2048, every=10, seed=1000 * seed)
        model = fit(model, batches, config, out=None)
        spent = time.process_time() - begin
        made = model.weighted(20_000, generator=torch.Generator().manual_seed(1))
        first = target.modes(quaternion_to_matrix(made.x)) == 0
        print(
            f"seed {seed}: effective share {made.effective_share:.3f}, log Z {made.log_z.value:.4f} ± {made.log_z.error:.4f} "
            f"(exact {target.log_z:.4f}), share of the first mode {float(made.weights[first].sum()):.3f} "
            f"(exact {target.mode_mass[0]:.3f}), {a.steps // 10 * 2048:,} energies, {spent:.0f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    main()
