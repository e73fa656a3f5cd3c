"""Sampling: the loop, kernels, integrators, time grids, likelihoods and stochastic samplers."""

from manifoldflow.sampling.adaptive import Adaptive
from manifoldflow.sampling.base import Kernel, Memoryless, Trajectory, trajectory_log_prob
from manifoldflow.sampling.corrector import PredictorCorrector
from manifoldflow.sampling.kernel import FlowKernel
from manifoldflow.sampling.kernels import OdeKernel, RandomWalk, ode_kernel
from manifoldflow.sampling.likelihood import divergence
from manifoldflow.sampling.simulate import simulate
from manifoldflow.sampling.steps import euler, heun, midpoint, rk4
from manifoldflow.sampling.stochastic import SDE, SDEKernel, langevin, score
from manifoldflow.sampling.timegrid import linear_grid
from manifoldflow.sampling.volume import log_volume_change
from manifoldflow.state import Move

__all__ = [
    "SDE",
    "Adaptive",
    "FlowKernel",
    "Kernel",
    "Memoryless",
    "Move",
    "OdeKernel",
    "PredictorCorrector",
    "RandomWalk",
    "SDEKernel",
    "Trajectory",
    "divergence",
    "euler",
    "heun",
    "langevin",
    "linear_grid",
    "log_volume_change",
    "midpoint",
    "ode_kernel",
    "rk4",
    "score",
    "simulate",
    "trajectory_log_prob",
]
