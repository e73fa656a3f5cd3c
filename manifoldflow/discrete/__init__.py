"""Discrete states: tokens, and draws of them."""

from manifoldflow.discrete.counts import Counts
from manifoldflow.discrete.draws import draw_categorical, probabilities
from manifoldflow.discrete.tokens import Tokens

__all__ = ["Counts", "Tokens", "draw_categorical", "probabilities"]
