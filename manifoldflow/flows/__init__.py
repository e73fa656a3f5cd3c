"""Invertible layers on circles, lines and unit quaternions, with exact inverses and log-determinants.

What they are for: Boltzmann generators (:class:`manifoldflow.energies.BoltzmannGenerator`), whose weights need the density of
every sample at the price of the sample.
"""

from manifoldflow.flows.base import Chain, Inverted, Layer, Pushed
from manifoldflow.flows.bodies import BodyTransformer
from manifoldflow.flows.couplings import FieldCoupling, Mixing, Mlp, RotationCoupling, SplitCoupling, rotation_flow
from manifoldflow.flows.moebius import double_moebius, projective
from manifoldflow.flows.splines import circular_spline, line_spline, rational_quadratic
from manifoldflow.flows.transforms import Affine, CircularSpline, DoubleMoebius, LineSpline, Projective, Transform
from manifoldflow.flows.zuko import FromZuko

__all__ = [
    "Affine",
    "BodyTransformer",
    "Chain",
    "CircularSpline",
    "DoubleMoebius",
    "FieldCoupling",
    "FromZuko",
    "Inverted",
    "Layer",
    "LineSpline",
    "Mixing",
    "Mlp",
    "Projective",
    "Pushed",
    "RotationCoupling",
    "SplitCoupling",
    "Transform",
    "circular_spline",
    "double_moebius",
    "line_spline",
    "projective",
    "rational_quadratic",
    "rotation_flow",
]
