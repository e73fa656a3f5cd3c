"""The old name of :mod:`manifoldflow.training.curves`; it goes in the next version."""

import warnings

from manifoldflow.training.curves import plot_losses, read_rows, write_rows

__all__ = ["plot_losses", "read_rows", "write_rows"]

warnings.warn("manifoldflow.curves is now manifoldflow.training.curves", FutureWarning, stacklevel=2)
