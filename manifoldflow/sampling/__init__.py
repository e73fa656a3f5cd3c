"""Sampling: the loop, the integrators, time grids and likelihoods."""

from manifoldflow.sampling.likelihood import Adaptive, divergence
from manifoldflow.sampling.simulate import Kernel, ode_kernel, simulate
from manifoldflow.sampling.steps import euler, heun, midpoint, rk4
from manifoldflow.sampling.timegrid import linear_grid

__all__ = [
    "Adaptive",
    "Kernel",
    "divergence",
    "euler",
    "heun",
    "linear_grid",
    "midpoint",
    "ode_kernel",
    "rk4",
    "simulate",
]
