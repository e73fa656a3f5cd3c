"""Baseline networks."""

from manifoldflow.nn.mlp import TangentMLP

__all__ = ["TangentMLP"]
