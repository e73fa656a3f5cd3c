"""A proxy for activity: kernel ridge regression on the Tanimoto similarity of fingerprints, as a module that is saved and loaded."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from manifoldflow.tasks.molecules.chemistry import parsed, rdkit

BITS = 2048
RADII = (2, 3)


def fingerprints(smiles: Sequence[str], radius: int = 2, bits: int = BITS) -> Tensor:
    """Morgan fingerprints as numbers 0 and 1, float32 ``(n, bits)``.

    Raises:
        ValueError: no molecule; says which.
    """
    rdkit()
    import numpy as np
    from rdkit.Chem import rdFingerprintGenerator

    maker = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=bits)
    made = np.zeros((len(smiles), bits), dtype=np.float32)
    for i, text in enumerate(smiles):
        mol = parsed(text)
        if mol is None:
            raise ValueError(f"molecule {i} is none: {text!r}")
        made[i] = maker.GetFingerprintAsNumPy(mol)
    return torch.from_numpy(made)


def tanimoto(a: Tensor, b: Tensor) -> Tensor:
    r"""Similarities :math:`|a \cap b| / |a \cup b|` of bit vectors, ``(n, m)``; 0 where both are empty."""
    both = a @ b.T
    either = a.sum(-1, keepdim=True) + b.sum(-1) - both
    return both / either.clamp_min(1)


class TanimotoRidge(nn.Module):
    """Predicts a number of a molecule from those of similar ones: kernel ridge regression, the kernel being the mean Tanimoto
    similarity of Morgan fingerprints of radius 2 and 3.

    Args:
        size: molecules learned from; filled by :meth:`fitted` or a checkpoint.
        bits: of a fingerprint.
        target: what is predicted, in words.
        low, high: predictions that are scored 0 and 1 by :meth:`score`.
    """

    builder = "manifoldflow.tasks.molecules.proxy:build"

    def __init__(self, size: int, bits: int = BITS, target: str = "", low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.config = {"size": size, "bits": bits, "target": target, "low": low, "high": high}
        self.bits, self.low, self.high = bits, low, high
        self.register_buffer("packed", torch.zeros(len(RADII), size, bits // 8, dtype=torch.uint8))
        self.register_buffer("weight", torch.zeros(size))
        self.register_buffer("offset", torch.zeros(()))
        self._known: Tensor | None = None

    @classmethod
    def fitted(cls, smiles: Sequence[str], value: Tensor, ridge: float = 0.3, **options: Any) -> "TanimotoRidge":
        """Learn from molecules and their numbers ``(n,)``."""
        made = cls(len(smiles), **options)
        prints = torch.stack([fingerprints(smiles, r, made.bits) for r in RADII])
        made.packed.copy_(_packed(prints))  # type: ignore[operator]
        kernel = made._kernel(prints).double()
        made.offset.copy_(value.mean())  # type: ignore[operator]
        eye = torch.eye(len(smiles), dtype=torch.float64)
        made.weight.copy_(torch.linalg.solve(kernel + ridge * eye, value.double() - value.double().mean()))  # type: ignore[operator]
        return made

    def _kernel(self, prints: Tensor) -> Tensor:
        if self._known is None:
            self._known = _unpacked(self.packed)  # type: ignore[arg-type]
        return torch.stack([tanimoto(a, b) for a, b in zip(prints, self._known, strict=True)]).mean(0)

    @torch.no_grad()
    def forward(self, smiles: Sequence[str]) -> Tensor:
        """Predictions, ``(n,)``."""
        if not len(smiles):
            return torch.zeros(0)
        kernel = self._kernel(torch.stack([fingerprints(smiles, r, self.bits) for r in RADII]))
        weight: Any = self.weight
        return kernel @ weight + self.offset

    @torch.no_grad()
    def nearest(self, smiles: Sequence[str]) -> Tensor:
        """Similarity of each to the nearest molecule learned from, ``(n,)``: how far a prediction reaches."""
        return self._kernel(torch.stack([fingerprints(smiles, r, self.bits) for r in RADII])).amax(-1)

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


def _packed(prints: Tensor) -> Tensor:
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128])
    return (prints.unflatten(-1, (-1, 8)).long() * powers).sum(-1).to(torch.uint8)


def _unpacked(packed: Tensor) -> Tensor:
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) & bits).ne(0).float().flatten(-2)
