"""Sequences of regulatory DNA: five representations of one flow, motifs, and what samples are worth."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from manifoldflow.tasks.dna.alphabet import decode, encode, reverse_complement
from manifoldflow.tasks.dna.designer import Design, SequenceDesigner
from manifoldflow.tasks.dna.flow import DnaConfig, build, load_flow, sample_tokens
from manifoldflow.tasks.dna.model import ConvNet, Transformer
from manifoldflow.tasks.dna.motifs import Motif, read_motifs
from manifoldflow.tasks.dna.reading import read_sequences, write_fasta
from manifoldflow.tasks.dna.sequences import SequenceSet
from manifoldflow.tasks.dna.sets import load_set

if TYPE_CHECKING:
    from manifoldflow.tasks.dna.commands import COMMANDS, evaluate, plot, sample, serve, train

BUILDERS = ("manifoldflow.tasks.dna.flow:build",)
"""What checkpoints of this task may be built by."""

EXAMPLES = {
    "train": "manifoldflow train dna --data peaks.fasta --both_strands true --model.representation dirichlet",
    "sample": "manifoldflow sample dna --checkpoint runs/dna/peaks_masking --label ctcf --guidance 2 --num 500",
    "plot": "manifoldflow plot dna --samples designs.fasta --data promoters --motifs jaspar.pfm --motif MA0108.2 --origin 200",
    "serve": "manifoldflow serve dna --checkpoints runs/peaks --motifs jaspar.pfm --motif MA0139.1,MA0080.4",
    "evaluate": "manifoldflow evaluate dna --samples designs.fasta --data peaks.fasta",
}

__all__ = [
    "BUILDERS",
    "COMMANDS",
    "EXAMPLES",
    "ConvNet",
    "Design",
    "DnaConfig",
    "Motif",
    "SequenceDesigner",
    "SequenceSet",
    "Transformer",
    "build",
    "decode",
    "encode",
    "evaluate",
    "load_flow",
    "load_set",
    "plot",
    "read_motifs",
    "read_sequences",
    "reverse_complement",
    "sample",
    "sample_tokens",
    "serve",
    "train",
    "write_fasta",
]

_COMMANDS = ("COMMANDS", "evaluate", "plot", "sample", "serve", "train")
"""What trains or judges: it needs Lightning, whose import takes longer than all others together, so it comes when asked for."""


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        return getattr(import_module("manifoldflow.tasks.dna.commands"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
