"""The sequences of a run as files: FASTA beside each structure and one table, complete after every batch."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manifoldflow.files import write_text
from manifoldflow.tasks.proteins.sequences import ProteinMPNN, aatype_of, comparison, fasta, summary
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS

COLUMNS = ("name", "nll", "alanine", "glycine", "designed", "length", "kept", "sequence")


class SequenceFiles:
    """Designs sequences for backbones as they come and keeps their files.

    Args:
        folder: for ``NAME.fasta`` and ``sequences.csv``.
        designer: draws the sequences.
        count: sequences a backbone.
        seed: of the run; every backbone gets its own from it.
    """

    def __init__(self, folder: Path, designer: ProteinMPNN, count: int, seed: int) -> None:
        self.folder, self.designer, self.count, self.seed = folder, designer, count, seed
        self.best: dict[str, Any] = {}
        self.designed: dict[str, int] = {}
        self.dropped: set[str] = set()

    def add(self, atoms: Tensor, mask: Tensor, names: Sequence[str], motif: Any, advance: Callable[[], Any]) -> Tensor:
        """Design for one batch and write its FASTA files; returns residue types ``(B, N)`` of the likeliest sequences."""
        kinds = torch.full(mask.shape, AMINO_ACIDS.index("G"))
        for i, name in enumerate(names):
            real = mask[i].cpu()
            fixed = letters = chain = None
            if motif is not None:
                fixed, chain = motif.mask[i][real], motif.chain[i][real]
                letters = "".join(AMINO_ACIDS[k] for k in motif.aatype[i][real].tolist())
            made = self.designer.design(
                atoms[i][mask[i]],
                self.count,
                seed=(self.seed * 100_003 + len(self.best)) % 2**63,
                fixed=fixed,
                letters=letters,
                chain=chain,
            )
            write_text(self.folder / f"{name}.fasta", fasta(name, made, f"ProteinMPNN={self.designer.weights}"))
            self.best[name] = made[0]
            self.designed[name] = int(real.sum()) - (0 if fixed is None else int(fixed.sum()))
            kinds[i, real] = aatype_of(made[0].letters)
            advance()
        return kinds

    def write(self) -> Path:
        """The table, one row a backbone."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, one in self.best.items():
            shares = (f"{one.share(a):.4f}" for a in "AG")
            row = (name, f"{one.nll:.4f}", *shares, self.designed[name], len(one.letters))
            writer.writerow((*row, int(name not in self.dropped), one.letters))
        return write_text(self.folder / "sequences.csv", text.getvalue())

    def keep_best(self, count: int, groups: Sequence[int]) -> set[str]:
        """Drop all but the likeliest ``count`` of each group (length): their names. The table keeps all, with who stayed."""
        names = list(self.best)
        for group in dict.fromkeys(groups):
            members = [name for name, of in zip(names, groups, strict=True) if of == group]
            self.dropped |= set(sorted(members, key=lambda name: self.best[name].nll)[count:])
        for name in self.dropped:
            (self.folder / f"{name}.fasta").unlink(missing_ok=True)
        self.write()
        return self.dropped

    def _kept(self) -> list[Any]:
        return [one for name, one in self.best.items() if name not in self.dropped]

    def numbers(self) -> dict[str, float]:
        """What the report shows of them."""
        found = summary(self._kept())
        return {"sequence_nll": found["nll"]["mean"], "alanine": found["composition"]["A"]}

    def table(self, keep: int | None, made: int) -> tuple[list[tuple[str, str, str]], list[str]]:
        """Rows beside those of real chains, and what a reader must know."""
        notes = [
            f"{self.folder}/: NAME.fasta, the likeliest first, which is also in the structure file; sequences.csv",
            "real chains: ProteinMPNN's own sequences for experimental backbones, with the same settings",
        ]
        if keep is not None:
            before = summary(list(self.best.values()))["nll"]["mean"]
            notes.append(
                f"kept the {len(self._kept())} of {made} whose sequences are likeliest: mean negative log-likelihood "
                f"{summary(self._kept())['nll']['mean']:.3f}, of all {before:.3f}. These are chosen, not typical samples"
            )
        return comparison(self._kept()), notes


def forget(folder: Path, names: Sequence[str]) -> None:
    """Remove the sequences of backbones that were just replaced by ones without: they would be of another structure."""
    for name in names:
        path = folder / f"{name}.fasta"
        if path.is_file() and path.read_text(errors="replace").startswith(f">{name}_1 nll="):
            path.unlink()
    table = folder / "sequences.csv"
    if table.is_file() and table.read_text(errors="replace").startswith(",".join(COLUMNS)):
        table.unlink()
