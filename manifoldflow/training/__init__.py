"""Training: :func:`fit` trains anything that turns a batch into a loss, and leaves a run that can be continued.

Lightning is imported when a training starts, not here.
"""

from manifoldflow.training.batches import Batches
from manifoldflow.training.config import TrainConfig
from manifoldflow.training.curves import plot_losses
from manifoldflow.training.fit import fit
from manifoldflow.training.trainable import Batch, Trainable

__all__ = ["Batch", "Batches", "TrainConfig", "Trainable", "fit", "plot_losses"]
