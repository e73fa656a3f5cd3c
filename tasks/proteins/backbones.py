"""The backbones of many structure files, or of a data set, in one padded batch."""

from pathlib import Path

import torch
from torch import Tensor

from manifoldflow.tasks.proteins.data import ProteinDataset


def structure_files(folder: Path) -> list[Path]:
    """The structures of a folder in order of their names, trajectories left out."""
    from manifoldflow.tasks.proteins.reading import SUFFIXES, split_suffix

    return sorted(p for p in folder.iterdir() if split_suffix(p)[1] in SUFFIXES and "_trajectory" not in p.name)


def read_backbones(files: list[Path]) -> tuple[Tensor, Tensor, Tensor]:
    """First chain of each file, padded: coords ``(B, N, 4, 3)``, mask ``(B, N)``, residue_index ``(B, N)``."""
    from torch.nn.utils.rnn import pad_sequence

    from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET
    from manifoldflow.tasks.proteins.reading import read_structure

    chains = [read_structure(path)[0] for path in files]
    for path, chain in zip(files, chains, strict=True):
        if len(chain) < 2:
            raise ValueError(f"{path}: the first chain has one residue only; a backbone has at least 2")
    coords = pad_sequence([torch.as_tensor(c.coords) for c in chains], batch_first=True)
    mask = pad_sequence([torch.ones(len(c), dtype=torch.bool) for c in chains], batch_first=True)
    breaks = [torch.as_tensor(c.break_after).long().cumsum(0).roll(1) * BREAK_OFFSET for c in chains]
    for gap in breaks:
        gap[0] = 0
    index = pad_sequence([torch.arange(len(c)) + gap for c, gap in zip(chains, breaks, strict=True)], batch_first=True)
    return coords, mask, index


def padded_set(data: str) -> tuple[Tensor, Tensor, Tensor]:
    """All chains of a data set, padded: coords, mask, residue_index."""
    from torch.nn.utils.rnn import pad_sequence

    dataset = ProteinDataset(data)
    items = [dataset[i] for i in range(len(dataset))]
    coords = pad_sequence([item["coords"] for item in items], batch_first=True)
    mask = pad_sequence([torch.ones(len(item["coords"]), dtype=torch.bool) for item in items], batch_first=True)
    return coords, mask, pad_sequence([item["residue_index"] for item in items], batch_first=True)
