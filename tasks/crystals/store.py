"""The data set on disk: a folder of .npy files with all atoms, mapped into memory, and index.json with one entry per crystal."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from manifoldflow.tasks.common.store import FolderWriter, read_folder_index
from manifoldflow.tasks.crystals.structure import Crystal, Crystals, collate

FORMAT_VERSION = 1
NAMED_SETS = ("perov_5", "mp_3dsc_20", "mp_40", "carbon_24")


class CrystalWriter(FolderWriter):
    """Write crystals one by one into a data set folder, which appears under its name only when complete.

    Args:
        folder: the data set to make; see :class:`manifoldflow.tasks.common.store.FolderWriter`.
    """

    arrays: ClassVar = {"species": ("|i1", ()), "frac": ("<f8", (3,))}
    kind: ClassVar[str] = "crystal"
    items: ClassVar[str] = "crystals"
    rows: ClassVar[str] = "atoms"
    version: ClassVar[int] = FORMAT_VERSION

    def add(self, crystal: Crystal, source: str | None = None) -> None:
        """Append a crystal; its name must be new."""
        if not (np.isfinite(crystal.frac).all() and np.isfinite(crystal.cell).all()):
            raise ValueError(f"{crystal.name}: coordinates or cell are not finite")
        arrays = {"species": crystal.species, "frac": crystal.frac}
        entry = {"cell": crystal.cell, "formula": crystal.formula, "labels": crystal.labels, "source": source}
        self.append(crystal.name, len(crystal), arrays, entry)

    def columns(self) -> dict[str, list[Any]]:
        return {key: [e[key] for e in self.entries] for key in ("name", "formula", "source", "labels")}

    def save_more(self) -> None:
        cells = np.array([e["cell"] for e in self.entries], float).reshape(-1, 3, 3)
        np.save(self.temporary / "cell.npy", cells)


class CrystalDataset(Sequence[Crystal]):
    """A prepared set, or a list of crystals, by row.

    Args:
        source: folder of a prepared set (its arrays are mapped, not read), a file of structures (read and Niggli-reduced), the
            name of a set (see :func:`find_set`), or crystals.

    Raises:
        FileNotFoundError: there is no such set or file.
        ValueError: the set is damaged, or the file holds no crystal.
    """

    def __init__(self, source: str | Path | Iterable[Crystal]) -> None:
        self._list: list[Crystal] | None = None
        if isinstance(source, (str, Path)):
            source = find_set(source)
        if not isinstance(source, (str, Path)):
            self._list = list(source)
        elif not is_prepared(source):
            from manifoldflow.tasks.crystals.reading import load_crystals

            self._list, rejected = load_crystals(source)
            if not self._list:
                raise ValueError(
                    f"{source}: no crystal can be used; the first reason: {rejected[0] if rejected else 'none'}"
                )
        if self._list is not None:
            self.names = [c.name for c in self._list]
            self.formulas = [c.formula for c in self._list]
            self.labels: list[dict[str, Any]] = [c.labels for c in self._list]
            self.lengths = np.array([len(c) for c in self._list], np.int64)
            return
        folder = Path(str(source))
        index = read_folder_index(folder, FORMAT_VERSION, "crystal")
        try:
            arrays = {
                key: np.load(folder / f"{key}.npy", mmap_mode="r") for key in ("species", "frac", "cell", "offset")
            }
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: the data set is damaged ({error}); run `prepare` again") from error
        self.names, self.formulas, self.labels = index["name"], index["formula"], index["labels"]
        self._species, self._frac, self._cell, self._offset = (
            arrays[key] for key in ("species", "frac", "cell", "offset")
        )
        if (
            len(self._cell) != len(self.names)
            or self._offset[-1] != len(self._species)
            or len(self._frac) != self._offset[-1]
        ):
            raise ValueError(
                f"{folder}: the data set is damaged (its files are of different lengths); run `prepare` again"
            )
        self.lengths = np.diff(self._offset)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if self._list is not None:
            return self._list[i]
        i = range(len(self))[i]
        start, end = int(self._offset[i]), int(self._offset[i + 1])
        species, frac = np.array(self._species[start:end], np.int64), np.array(self._frac[start:end])
        return Crystal(species, frac, np.array(self._cell[i]), self.names[i], self.labels[i])

    def batch(self, rows: Iterable[int], size: int | None = None, dtype: torch.dtype = torch.float32) -> Crystals:
        """Some crystals as a padded batch."""
        return collate((self[int(i)] for i in rows), size, dtype)

    def label(self, key: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        """A numeric label of all crystals, NaN where it is missing or no number.

        Raises:
            ValueError: no crystal has it; says which there are.
        """
        values = np.array([v if isinstance(v := d.get(key), (int, float)) else np.nan for d in self.labels], float)
        if np.isnan(values).all():
            known = sorted({k for d in self.labels[:100] for k, v in d.items() if isinstance(v, (int, float))})
            raise ValueError(f"no crystal has the label {key!r}; there are {', '.join(known) or 'none'}")
        return values


def find_set(source: str | Path) -> Path:
    """The path of a set: itself, or of ``prototypes`` (generated, ships with the library), or of ``perov_5``, ``mp_3dsc_20``,
    ``mp_40`` and ``carbon_24`` in the shared data."""
    path = Path(source)
    if path.exists() or path.parent != Path("."):
        return path
    if path.name == "prototypes":
        from manifoldflow.tasks.crystals.prototypes import embedded

        return embedded()
    if path.name in NAMED_SETS:
        from manifoldflow.tasks.common.files import find_shared

        return find_shared(f"crystals/{path.name}.csv.gz")
    return path


def is_prepared(path: str | Path) -> bool:
    """Whether a path is the folder of a prepared set."""
    return (Path(path) / "index.json").is_file()


def write_dataset(crystals: Iterable[Crystal], folder: str | Path, source: str | None = None) -> Path:
    """Write crystals as one memory-mapped data set, atomically.

    Raises:
        ValueError: there are none.
    """
    with CrystalWriter(folder) as writer:
        for crystal in crystals:
            writer.add(crystal, source)
        if not writer.entries:
            raise ValueError(f"{folder}: no crystals to write")
    return Path(folder)
