"""The commands of the protein task: what ``manifoldflow train|sample|evaluate|prepare|reflow proteins`` runs.

Each lives in a module of its own; these are the names they had in one.
"""

from manifoldflow.tasks.proteins.backbones import padded_set, read_backbones, structure_files
from manifoldflow.tasks.proteins.evaluate_command import evaluate
from manifoldflow.tasks.proteins.prepare import prepare
from manifoldflow.tasks.proteins.reflow_command import reflow
from manifoldflow.tasks.proteins.sample_command import DEFAULT_STEPS, check_memory, free_memory, sample
from manifoldflow.tasks.proteins.train_command import train

__all__ = [
    "DEFAULT_STEPS",
    "check_memory",
    "evaluate",
    "free_memory",
    "padded_set",
    "prepare",
    "read_backbones",
    "reflow",
    "sample",
    "structure_files",
    "train",
]
