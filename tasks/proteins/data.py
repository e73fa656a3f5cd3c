"""The protein data set: one memory-mapped folder, random access by chain, batches by number of residues."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from manifoldflow.tasks.proteins.batches import TokenBatches
from manifoldflow.tasks.proteins.geometry import BREAK_OFFSET, frames_from_atoms
from manifoldflow.tasks.proteins.reading import read_structure
from manifoldflow.tasks.proteins.store import DatasetWriter, read_index, write_dataset
from manifoldflow.tasks.proteins.structure import AMINO_ACIDS, THREE_LETTER, Chain, read_npz, rebuild_oxygen

__all__ = [
    "AMINO_ACIDS",
    "THREE_LETTER",
    "Chain",
    "DatasetWriter",
    "ProteinDataset",
    "TokenBatches",
    "collate",
    "read_npz",
    "read_structure",
    "rebuild_oxygen",
    "split_by_cluster",
    "write_dataset",
]

_UNKNOWN = len(AMINO_ACIDS) - 1


class ProteinDataset(Dataset[dict[str, Any]]):
    """Chains of a data set folder, memory-mapped (workers share the pages; nothing is loaded up front).

    Args:
        folder: written by ``manifoldflow prepare proteins`` or :func:`write_dataset`.
        min_length: shorter chains are left out.
        max_length: longer chains give a random contiguous piece of this length, a new one in every epoch (see
            :meth:`set_epoch`), or are left out if ``crop`` is False.
        crop: see ``max_length``.
        names: keep only these chains, in this order.
        seed: of the pieces.

    Items are ``{"coords": (N, 4, 3) float32, angstrom, "aatype": (N,) int64, "residue_index": (N,) int64,
    "name": str}``. ``residue_index`` is the position from 0, plus 33 for every chain break before.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        min_length: int = 1,
        max_length: int | None = None,
        crop: bool = True,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        self.folder, self.seed, self.epoch = Path(folder), seed, 0
        self.index = read_index(self.folder)
        self.max_length = max_length
        if max_length is not None and max_length < max(min_length, 1):
            raise ValueError(f"max_length {max_length} is below min_length {min_length}")
        self._open()
        offset = self._arrays["offset"]
        length = np.diff(offset)
        position = {name: i for i, name in enumerate(self.index["name"])}
        if names is None:
            chosen = np.arange(len(length))
        else:
            unknown = [name for name in names if name not in position]
            if unknown:
                raise ValueError(f"{self.folder}: no chain is named {unknown[0]!r} ({len(unknown)} unknown names)")
            chosen = np.array([position[name] for name in names], np.int64)
        keep = length[chosen] >= min_length
        if max_length is not None and not crop:
            keep &= length[chosen] <= max_length
        self._chosen = chosen[keep]
        if not len(self._chosen):
            raise ValueError(f"{self.folder}: none of {len(chosen)} chains has {min_length} to {max_length} residues")
        self._begin, self._length = offset[:-1][self._chosen], length[self._chosen]

    def _open(self) -> None:
        self._arrays = {}
        rows = self.index["residues"]
        for key in ("coords", "aatype", "break_after", "offset"):
            path = self.folder / f"{key}.npy"
            try:
                self._arrays[key] = np.load(path, mmap_mode=None if key == "offset" else "r")
            except (OSError, ValueError, EOFError) as error:
                raise ValueError(f"{path}: missing or damaged ({error}); run `prepare` again") from error
            expected = self.index["chains"] + 1 if key == "offset" else rows
            if len(self._arrays[key]) != expected:
                found = len(self._arrays[key])
                raise ValueError(f"{path}: {found} rows, index.json says {expected}; run `prepare` again")

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map is a full copy: spawned workers map the files again instead.
        return {key: value for key, value in self.__dict__.items() if key != "_arrays"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def names(self) -> list[str]:
        """Names of the chains, in order of access."""
        return [self.index["name"][i] for i in self._chosen]

    @property
    def clusters(self) -> list[str | None]:
        """Cluster of each chain, None where unknown."""
        return [self.index["cluster"][i] for i in self._chosen]

    @property
    def lengths(self) -> list[int]:
        """Residues that each item has, after cropping."""
        return np.minimum(self._length, self.max_length or self._length.max()).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Choose the pieces of long chains."""
        self.epoch = epoch

    def __getitem__(self, i: int) -> dict[str, Any]:
        begin, length = int(self._begin[i]), int(self._length[i])
        if self.max_length is not None and length > self.max_length:
            # From (seed, epoch, item) alone: a continued run, and every process of a run, sees the same piece.
            begin += random.Random(f"{self.seed} {self.epoch} {i}").randrange(length - self.max_length + 1)
            length = self.max_length
        part = slice(begin, begin + length)
        breaks = np.cumsum(self._arrays["break_after"][part]).astype(np.int64)
        residue_index = np.arange(length)
        residue_index[1:] += BREAK_OFFSET * breaks[:-1]
        return {
            "coords": torch.from_numpy(self._arrays["coords"][part].copy()),
            "aatype": torch.from_numpy(self._arrays["aatype"][part].astype(np.int64)),
            "residue_index": torch.from_numpy(residue_index),
            "name": self.index["name"][self._chosen[i]],
        }


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Pad chains to one batch of frames, the CA atoms of each centred at the origin.

    Returns:
        ``{"x": {"trans": (B, N, 3) angstrom, "rots": (B, N, 3, 3)}, "mask": (B, N) bool,
        "cond": {"residue_index": (B, N), "aatype": (B, N)}}``.
        Padding holds trans 0, rots identity, residue index 0 and type X (20).
    """
    pad = torch.nn.utils.rnn.pad_sequence
    # Centred before padding, chain by chain: the mean of a padded batch in float32 would depend on the padding.
    coords = pad([item["coords"] - item["coords"][:, 1].mean(0) for item in items], batch_first=True)
    mask = pad([torch.ones(len(item["coords"]), dtype=torch.bool) for item in items], batch_first=True)
    cond = {
        "residue_index": pad([item["residue_index"] for item in items], batch_first=True),
        "aatype": pad([item["aatype"] for item in items], batch_first=True, padding_value=_UNKNOWN),
    }
    x: dict[str, Tensor] = frames_from_atoms(coords)
    return {"x": x, "mask": mask, "cond": cond}


def split_by_cluster(
    dataset: ProteinDataset | Mapping[str, Any] | str | Path, fraction: float = 0.1, seed: int = 0
) -> tuple[list[str], list[str]]:
    """Names for training and validation such that no cluster is in both.

    Whole clusters, in an order drawn from ``seed``, go to validation while they fit ``fraction`` of the chains. A chain
    of unknown cluster is alone in its own, under its name.

    Args:
        dataset: a :class:`ProteinDataset`, its folder, or its index (``name`` and ``cluster`` lists).
        fraction: share of chains for validation, in (0, 1).

    Returns:
        ``(train, validation)``, each in the order of the data set.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie in (0, 1), got {fraction}")
    if isinstance(dataset, (str, Path)):
        dataset = read_index(Path(dataset))
    if isinstance(dataset, ProteinDataset):
        names, clusters = dataset.names, dataset.clusters
    else:
        names, clusters = dataset["name"], dataset["cluster"]
    label = [
        f"chain {name}" if cluster is None else f"cluster {cluster}"
        for name, cluster in zip(names, clusters, strict=True)
    ]
    size: dict[str, int] = {}
    for key in label:
        size[key] = size.get(key, 0) + 1
    order = sorted(size)
    random.Random(seed).shuffle(order)
    room, held = round(fraction * len(names)), set()
    for key in order:
        if size[key] <= room:
            held.add(key)
            room -= size[key]
    if not held:
        raise ValueError(f"no cluster fits {fraction:g} of {len(names)} chains; raise the fraction")
    train = [name for name, key in zip(names, label, strict=True) if key not in held]
    return train, [name for name, key in zip(names, label, strict=True) if key in held]
