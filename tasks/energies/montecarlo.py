"""Monte Carlo to a budget of energy calls, and what every sampler's result is called and measured by."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from manifoldflow.energies import Energy, parallel_tempering, sequential_monte_carlo
from manifoldflow.state import State, first_tensor
from manifoldflow.tasks.common.seeds import generator_of
from manifoldflow.tasks.energies.targets import Target

MonteCarlo = Literal["smc", "pt"]
LEAPFROGS, LEVELS = 5, 16


@dataclass
class Result:
    """Samples of a target, however they were made.

    Attributes:
        x: states.
        log_weight: ``(B,)``.
        log_z: estimate.
        log_z_error: its standard error by the weights; NaN where the method has none.
        share: effective size as a share.
        calls: energy calls in all.
        trace: rows on the way.
    """

    x: State
    log_weight: Tensor
    log_z: float
    log_z_error: float
    share: float
    calls: int
    trace: list[dict[str, float]]


def run_monte_carlo(target: Target, method: MonteCarlo, calls: int, seed: int, timeout: float = 0.0) -> Result:
    """Tempered sequential Monte Carlo or parallel tempering with about so many energy calls.

    Both move by five leapfrogs. Sequential Monte Carlo spends the calls on :math:`\\sqrt{calls / 100}` temperatures and 20
    particles a temperature: 1.2e6 calls are 110 temperatures of 2,178 particles. Parallel tempering has 16 levels and the rounds
    that 32 chains a level leave, fewer chains where those would be less than 100.

    Raises:
        ValueError: too few calls for any.
    """
    if calls < 2000:
        raise ValueError(f"--calls must be at least 2000, got {calls}")
    energy = Energy(target.log_density, target.space, name=f"the energy of {target.name}", timeout=timeout)
    generator, step = generator_of(seed), 0.1 * target.scale
    if method == "smc":
        temperatures = max(8, round(math.sqrt(calls / 100)))
        size = max(2, round(calls / (LEAPFROGS * temperatures + 1)))
        made = sequential_monte_carlo(
            energy,
            target.base,
            size=size,
            temperatures=temperatures,
            leapfrogs=LEAPFROGS,
            step=step,
            generator=generator,
        )
    else:
        each = (LEVELS - 1) * LEAPFROGS + 1
        chains = min(32, max(2, calls // (100 * each)))
        made = parallel_tempering(
            energy, target.base, levels=LEVELS, chains=chains, rounds=max(4, calls // (each * chains)),
            leapfrogs=LEAPFROGS, step=step, generator=generator,
        )  # fmt: skip
    return Result(made.x, made.log_weight, made.log_z, math.nan, made.share, made.calls, made.trace)


def measured(target: Target, result: Result) -> dict[str, Any]:
    """The numbers of a result: log Z and its error, effective share, modes, distance between bins and its floor."""
    row: dict[str, Any] = {
        "log_z": result.log_z,
        "log_z_error": result.log_z_error,
        "share": result.share,
        "calls": result.calls,
        "samples": len(first_tensor(result.x)),
    }
    if target.log_z is not None:
        row["off"] = result.log_z - target.log_z
    if target.modes is not None:
        row["modes"], row["modes_in_all"] = target.modes_found(result.x), len(target.mode_mass)
    if target.bins is not None:
        row["tv"] = target.total_variation(result.x)
        row["tv_weighted"] = target.total_variation(result.x, result.log_weight)
        row["tv_floor"] = target.floor(row["samples"])
    return row
