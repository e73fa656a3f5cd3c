"""The data set on disk: a folder of .npy files with all residues, and index.json with one entry per chain."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from manifoldflow.tasks.common.store import FolderWriter, read_folder_index
from manifoldflow.tasks.proteins.structure import Chain

FORMAT_VERSION = 1
_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "coords": ("<f4", (4, 3)),
    "aatype": ("|i1", ()),
    "resnum": ("<i4", ()),
    "icode": ("<U1", ()),
    "break_after": ("|b1", ()),
    "bfactor": ("<f4", ()),
}


class DatasetWriter(FolderWriter):
    """Write chains one by one into a data set folder, which appears under its name only when complete.

    Args:
        folder: the data set to make; see :class:`manifoldflow.tasks.common.store.FolderWriter`.
    """

    arrays: ClassVar = _ARRAYS
    kind: ClassVar[str] = "protein"
    items: ClassVar[str] = "chains"
    rows: ClassVar[str] = "residues"
    version: ClassVar[int] = FORMAT_VERSION

    def add(self, chain: Chain, cluster: str | None = None, source: str | None = None) -> None:
        """Append a chain; its name must be new and its arrays of one length."""
        if not np.isfinite(np.asarray(chain.coords, float)).all():
            raise ValueError(f"{chain.name}: coordinates are not finite")
        arrays = {key: getattr(chain, key) for key in _ARRAYS}
        breaks = int(np.asarray(chain.break_after).sum())
        entry = {"chain_id": chain.chain_id, "breaks": breaks, "cluster": cluster, "source": source}
        self.append(chain.name, len(chain), arrays, entry)

    def columns(self) -> dict[str, list[Any]]:
        return {key: [e[key] for e in self.entries] for key in ("name", "chain_id", "cluster", "source")}


def write_dataset(
    chains: Iterable[Chain],
    folder: str | Path,
    clusters: Mapping[str, str] | None = None,
    source: str | None = None,
) -> Path:
    """Write chains as one memory-mapped data set, atomically.

    Args:
        chains: at least one chain, names unique.
        folder: see :class:`DatasetWriter`.
        clusters: cluster of a chain by name, for :func:`split_by_cluster`.
        source: where the chains come from, kept in the index.

    Returns:
        The folder.
    """
    with DatasetWriter(folder) as writer:
        for chain in chains:
            writer.add(chain, (clusters or {}).get(chain.name), source)
        if not writer.entries:
            raise ValueError(f"{folder}: no chains to write")
    return Path(folder)


def read_index(folder: Path) -> dict[str, Any]:
    """Names, chain ids, clusters, sources and counts of a data set folder."""
    return read_folder_index(folder, FORMAT_VERSION, "protein")
