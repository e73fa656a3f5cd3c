"""Steering a trained flow: towards a condition, a score, or a classifier's class."""

from manifoldflow.guidance.base import Guided
from manifoldflow.guidance.classifier_free import ClassifierFree
from manifoldflow.guidance.oracle import NoisyClassifier, Oracle
from manifoldflow.guidance.particles import Particles

__all__ = ["ClassifierFree", "Guided", "NoisyClassifier", "Oracle", "Particles"]
