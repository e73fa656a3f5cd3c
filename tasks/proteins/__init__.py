"""Protein backbones: reading, the SE(3) flow, design, metrics and reports."""

from collections.abc import Callable
from typing import Any

from manifoldflow.tasks.proteins.commands import evaluate, prepare, reflow, sample, train
from manifoldflow.tasks.proteins.data import ProteinDataset, collate
from manifoldflow.tasks.proteins.flow import ProteinConfig, build
from manifoldflow.tasks.proteins.geometry import atoms_from_frames, frames_from_atoms
from manifoldflow.tasks.proteins.model import FrameTransformer, NetworkConfig
from manifoldflow.tasks.proteins.motif import Motif, load_motif
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.relax import relax
from manifoldflow.tasks.proteins.sampling import Sampling, sample_frames
from manifoldflow.tasks.proteins.write import write_cif, write_pdb, write_trajectory

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "prepare": prepare,
    "reflow": reflow,
}

BUILDERS = ("manifoldflow.tasks.proteins.flow:build",)
"""What checkpoints of this task may be built by."""

EXAMPLES = {
    "prepare": "manifoldflow prepare proteins --inputs structures/ --out data/chains",
    "train": "manifoldflow train proteins --data data/chains --out runs/first --training.max_minutes 60",
    "sample": "manifoldflow sample proteins --length 100 --num 8 --out designs/",
    "evaluate": "manifoldflow evaluate proteins --designs designs/ --out metrics.csv",
    "reflow": "manifoldflow reflow proteins --num 1000 --out pairs/",
}

__all__ = [
    "BUILDERS",
    "COMMANDS",
    "EXAMPLES",
    "FrameTransformer",
    "Motif",
    "NetworkConfig",
    "ProteinConfig",
    "ProteinDataset",
    "Sampling",
    "atoms_from_frames",
    "build",
    "collate",
    "evaluate",
    "frames_from_atoms",
    "load_motif",
    "prepare",
    "read_structure",
    "reflow",
    "relax",
    "sample",
    "sample_frames",
    "train",
    "write_cif",
    "write_pdb",
    "write_trajectory",
]
