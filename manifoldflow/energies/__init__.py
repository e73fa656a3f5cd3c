"""Samplers of energies: diffusions as GFlowNets, Boltzmann generators, and the Monte Carlo that they are measured against."""

from manifoldflow.energies.annealing import cooling, reweighting
from manifoldflow.energies.boltzmann import BoltzmannGenerator, Plain, Potential, Weighted, soften
from manifoldflow.energies.controls import Control, CoordinateControl, MlpControl
from manifoldflow.energies.diffusion import DiffusionSampler, WeightedEnds, bounded_balance
from manifoldflow.energies.energy import Energy, EnergyError, EnergyTimeout
from manifoldflow.energies.estimates import bennett, effective_share, log_mean, log_mean_error, systematic
from manifoldflow.energies.free_energy import Estimate, many_states, one_sided, two_sided
from manifoldflow.energies.internal import ConstrainedMolecule, InternalCoordinates, make_z_matrix
from manifoldflow.energies.moves import Base, Walkers, hmc, walkers_at
from manifoldflow.energies.openmm import OpenMMEnergy
from manifoldflow.energies.references import Brownian, OrnsteinUhlenbeck, Reference, grid
from manifoldflow.energies.replay import Replay
from manifoldflow.energies.rigid import RigidBodies
from manifoldflow.energies.smc import Population, resampled, sequential_monte_carlo
from manifoldflow.energies.sources import Ensemble, Product, Source
from manifoldflow.energies.tempering import parallel_tempering
from manifoldflow.energies.walks import ControlledBack, ControlledWalk, ReferenceBack

__all__ = [
    "Base",
    "BoltzmannGenerator",
    "Brownian",
    "ConstrainedMolecule",
    "Control",
    "ControlledBack",
    "ControlledWalk",
    "CoordinateControl",
    "DiffusionSampler",
    "Energy",
    "EnergyError",
    "EnergyTimeout",
    "Ensemble",
    "Estimate",
    "InternalCoordinates",
    "MlpControl",
    "OpenMMEnergy",
    "OrnsteinUhlenbeck",
    "Plain",
    "Population",
    "Potential",
    "Product",
    "Reference",
    "ReferenceBack",
    "Replay",
    "RigidBodies",
    "Source",
    "Walkers",
    "Weighted",
    "WeightedEnds",
    "bennett",
    "bounded_balance",
    "cooling",
    "effective_share",
    "grid",
    "hmc",
    "log_mean",
    "log_mean_error",
    "make_z_matrix",
    "many_states",
    "one_sided",
    "parallel_tempering",
    "resampled",
    "reweighting",
    "sequential_monte_carlo",
    "soften",
    "systematic",
    "two_sided",
    "walkers_at",
]
