"""Sampling: the loop, the integrators, time grids, likelihoods and stochastic samplers."""

from manifoldflow.sampling.likelihood import Adaptive, divergence
from manifoldflow.sampling.simulate import Kernel, ode_kernel, simulate
from manifoldflow.sampling.steps import euler, heun, midpoint, rk4
from manifoldflow.sampling.stochastic import SDE, SDEKernel, langevin, score
from manifoldflow.sampling.timegrid import linear_grid

__all__ = [
    "SDE",
    "Adaptive",
    "Kernel",
    "SDEKernel",
    "divergence",
    "euler",
    "heun",
    "langevin",
    "linear_grid",
    "midpoint",
    "ode_kernel",
    "rk4",
    "score",
    "simulate",
]
