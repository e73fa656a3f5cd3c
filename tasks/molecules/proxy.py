"""A proxy for activity: kernel ridge regression on the likeness of fingerprints, as a module that is saved and loaded."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.tasks.molecules.chemistry import parsed, rdkit

BITS = 2048
KINDS = ("morgan2", "morgan3", "features2", "pairs", "torsions")
"""Fingerprints of the proxy: atoms with their surroundings to two and three bonds, the same by what atoms do, pairs of atoms at
their distance, chains of four."""
MOST = 6
"""Counts above this are cut off."""


def fingerprints(smiles: Sequence[str], kind: str = "morgan2", *, counts: bool = False, bits: int = BITS) -> Tensor:
    """Fingerprints, float32 ``(n, bits)``: 0 and 1, or how often each feature occurs (at most 6 times).

    Raises:
        ValueError: no molecule; says which.
    """
    import numpy as np

    maker = _maker(kind, bits)
    made = np.zeros((len(smiles), bits), dtype=np.float32)
    for i, text in enumerate(smiles):
        mol = parsed(text)
        if mol is None:
            raise ValueError(f"molecule {i} is none: {text!r}")
        made[i] = maker.GetCountFingerprintAsNumPy(mol) if counts else maker.GetFingerprintAsNumPy(mol)
    return torch.from_numpy(made).clamp_max(MOST)


@lru_cache(maxsize=16)
def _maker(kind: str, bits: int) -> Any:
    rdkit()
    from rdkit.Chem import rdFingerprintGenerator as generators

    if kind.startswith("morgan"):
        return generators.GetMorganGenerator(radius=int(kind[-1]), fpSize=bits)
    if kind == "features2":
        atoms = generators.GetMorganFeatureAtomInvGen()
        return generators.GetMorganGenerator(radius=2, fpSize=bits, atomInvariantsGenerator=atoms)
    if kind == "pairs":
        return generators.GetAtomPairGenerator(fpSize=bits)
    return generators.GetTopologicalTorsionGenerator(fpSize=bits)


def tanimoto(a: Tensor, b: Tensor) -> Tensor:
    r"""Similarities :math:`|a \cap b| / |a \cup b|` of bit vectors, ``(n, m)``; 0 where both are empty."""
    both = a @ b.T
    either = a.sum(-1, keepdim=True) + b.sum(-1) - both
    return both / either.clamp_min(1)


class TanimotoRidge(nn.Module):
    r"""Predicts a number of a molecule from those of similar ones: kernel ridge regression.

    The kernel is the mean over five fingerprints of :math:`\sum \min(a, b) / \sum \max(a, b)`, the Tanimoto similarity of counts.

    Args:
        size: molecules learned from; filled by :meth:`fitted` or a checkpoint.
        entries: counts that are not 0 in their fingerprints.
        target: what is predicted, in words.
        low, high: predictions that are scored 0 and 1 by :meth:`score`.
    """

    builder = "manifoldflow.tasks.molecules.proxy:build"

    def __init__(self, size: int, entries: int, target: str = "", low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.config = {"size": size, "entries": entries, "target": target, "low": low, "high": high}
        self.low, self.high = low, high
        self.register_buffer(
            "ends", torch.zeros(len(KINDS) * size, dtype=torch.int32)
        )  # of every row, in the two below
        self.register_buffer("places", torch.zeros(entries, dtype=torch.int16))
        self.register_buffer("counts", torch.zeros(entries, dtype=torch.uint8))
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("offset", torch.zeros(()))
        self._known: list[tuple[Tensor, Tensor, Tensor, Tensor]] | None = None

    @classmethod
    def fitted(cls, smiles: Sequence[str], value: Tensor, ridge: float = 0.02, **options: Any) -> "TanimotoRidge":
        """Learn from molecules and their numbers ``(n,)``."""
        prints = torch.stack([fingerprints(smiles, kind, counts=True) for kind in KINDS])
        made = cls(len(smiles), int((prints > 0).sum()), **options)
        rows, places = prints.flatten(0, 1).nonzero(as_tuple=True)
        buffers: Any = made
        buffers.ends.copy_(torch.bincount(rows, minlength=len(KINDS) * len(smiles)).cumsum(0))
        buffers.places.copy_(places)
        buffers.counts.copy_(prints.flatten(0, 1)[rows, places])
        value = value.double()
        kernel = made.kernel(smiles).double() + ridge * torch.eye(len(smiles), dtype=torch.float64)
        buffers.offset.copy_(value.mean())
        buffers.weight.copy_(torch.linalg.solve(kernel, value - value.mean()))
        return made

    def kernel(self, smiles: Sequence[str]) -> Tensor:
        """Likeness of molecules to those learned from, ``(n, size)``."""
        if self._known is None:
            self._known = [_levels(print_) for print_ in self._prints()]
        total: Any = 0.0
        for kind, (bit, level, known, sums) in zip(KINDS, self._known, strict=True):
            own = fingerprints(smiles, kind, counts=True)
            both = (own[:, bit] > level).float() @ known.T  # sum of min(a, b): a product of "more than 0, 1, ... of it"
            total = total + both / (own.sum(-1, keepdim=True) + sums - both).clamp_min(1)
        return total / len(KINDS)

    def _prints(self) -> Tensor:
        size = len(self.weight)  # type: ignore[arg-type]
        buffers: Any = self
        ends = buffers.ends.long()
        rows = torch.repeat_interleave(torch.arange(len(ends)), ends.diff(prepend=ends.new_zeros(1)))
        made = torch.zeros(len(ends), BITS)
        made[rows, buffers.places.long()] = buffers.counts.float()
        return made.reshape(len(KINDS), size, BITS)

    @torch.no_grad()
    def forward(self, smiles: Sequence[str]) -> Tensor:
        """Predictions, ``(n,)``."""
        weight: Any = self.weight
        return self.kernel(smiles) @ weight + self.offset if len(smiles) else torch.zeros(0)

    @torch.no_grad()
    def nearest(self, smiles: Sequence[str]) -> Tensor:
        """Likeness of each to the nearest molecule learned from, ``(n,)``: how far to trust a prediction."""
        return self.kernel(smiles).amax(-1)

    def score(self, smiles: Sequence[str]) -> Tensor:
        """Predictions on the scale from 0 to 1, cut off there."""
        return ((self(smiles) - self.low) / (self.high - self.low)).clamp(0, 1)


def build(config: dict[str, Any]) -> TanimotoRidge:
    """The empty proxy of a checkpoint."""
    return TanimotoRidge(**config)


def scaffold_folds(smiles: Sequence[str], folds: int = 5) -> list[list[int]]:
    """Molecules in groups of whole Murcko scaffolds: the largest groups first, each into the fold that has least."""
    rdkit()
    from rdkit.Chem.Scaffolds import MurckoScaffold

    groups: dict[str, list[int]] = {}
    for i, text in enumerate(smiles):
        groups.setdefault(MurckoScaffold.MurckoScaffoldSmiles(mol=parsed(text)), []).append(i)
    made: list[list[int]] = [[] for _ in range(folds)]
    for _, rows in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        min(made, key=len).extend(rows)
    return made


def scaffold_scores(smiles: Sequence[str], value: Tensor, *, folds: int = 5, ridge: float = 0.02) -> dict[str, float]:
    """R^2 and Spearman's correlation for scaffolds that were left out, with the plain Tanimoto kernel beside ours."""
    from scipy.stats import spearmanr

    ours = TanimotoRidge.fitted(smiles, value, ridge).kernel(smiles).double()
    bits = fingerprints(smiles)
    made: dict[str, float] = {}
    value = value.double()
    for name, kernel in {"": ours, "plain_": tanimoto(bits, bits).double()}.items():
        predicted = torch.zeros_like(value)
        for fold in scaffold_folds(smiles, folds):
            test = torch.tensor(fold)
            keep = torch.ones(len(value), dtype=torch.bool)
            keep[test] = False
            train = keep.nonzero().squeeze(1)
            mean = value[train].mean()
            inner = kernel[train][:, train] + ridge * torch.eye(len(train), dtype=torch.float64)
            predicted[test] = kernel[test][:, train] @ torch.linalg.solve(inner, value[train] - mean) + mean
        made[f"{name}r2"] = float(1 - (value - predicted).square().sum() / (value - value.mean()).square().sum())
        made[f"{name}spearman"] = float(spearmanr(value, predicted)[0])
    return made


def _levels(prints: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Counts as "more than 0, 1, ... of it": the feature and the level of every column that someone reaches, the columns, the
    sums of the counts."""
    columns = [(bit, level) for level in range(MOST) for bit in (prints > level).any(0).nonzero().squeeze(1).tolist()]
    bit, level = (torch.tensor(c) for c in zip(*columns, strict=True))
    return bit, level, (prints[:, bit] > level).float(), prints.sum(-1)
