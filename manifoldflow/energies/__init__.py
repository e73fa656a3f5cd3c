"""Samplers of energies: diffusions as GFlowNets, Boltzmann generators, and the Monte Carlo that they are measured against."""

from manifoldflow.energies.energy import Energy
from manifoldflow.energies.estimates import bennett, effective_share, log_mean, log_mean_error, systematic
from manifoldflow.energies.moves import Base, Walkers, hmc, walkers_at
from manifoldflow.energies.smc import Population, resampled, sequential_monte_carlo
from manifoldflow.energies.tempering import parallel_tempering

__all__ = [
    "Base",
    "Energy",
    "Population",
    "Walkers",
    "bennett",
    "effective_share",
    "hmc",
    "log_mean",
    "log_mean_error",
    "parallel_tempering",
    "resampled",
    "sequential_monte_carlo",
    "systematic",
    "walkers_at",
]
