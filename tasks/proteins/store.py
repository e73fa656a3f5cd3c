"""The data set on disk: a folder of .npy files with all residues, and index.json with one entry per chain."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

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


class DatasetWriter:
    """Write chains one by one into a data set folder, which appears under its name only when complete.

    Use as a context manager; an exception inside removes what was written and leaves an older data set of that name
    as it was. ``.npy`` files grow on disk, so the memory needed is that of one chain.

    Args:
        folder: the data set to make. An older data set there is replaced if the folder holds nothing else; a folder
            with files that its index does not name is an error, whatever they are.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.is_symlink():  # the data set goes where the link leads
            self.folder = self.folder.resolve()
        _check_replaceable(self.folder)
        self.entries: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "DatasetWriter":
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        self.temporary.chmod(0o755)
        for key in _ARRAYS:
            self._files[key] = open(self.temporary / f"{key}.npy", "w+b")
            self._write_header(key, 0)
        return self

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, chain: Chain, cluster: str | None = None, source: str | None = None) -> None:
        """Append a chain; its name must be new and its arrays of one length."""
        if chain.name in self._names:
            raise ValueError(f"two chains are named {chain.name!r}; names must be unique in a data set")
        arrays = {key: np.asarray(getattr(chain, key), dtype) for key, (dtype, _) in _ARRAYS.items()}
        for key, (_, item) in _ARRAYS.items():
            if arrays[key].shape != (len(chain), *item):
                raise ValueError(f"{chain.name}: {key} has shape {arrays[key].shape}, expected {(len(chain), *item)}")
        if not np.isfinite(arrays["coords"]).all():
            raise ValueError(f"{chain.name}: coordinates are not finite")
        for key, array in arrays.items():
            self._files[key].write(np.ascontiguousarray(array).tobytes())
        self._names.add(chain.name)
        self.entries.append(
            {
                "name": chain.name,
                "chain_id": chain.chain_id,
                "length": len(chain),
                "breaks": int(arrays["break_after"].sum()),
                "cluster": cluster,
                "source": source,
            }
        )

    def _write_header(self, key: str, rows: int) -> None:
        # numpy pads the header for a growing first axis, so it can be rewritten in place once the count is known.
        dtype, item = _ARRAYS[key]
        file = self._files[key]
        file.seek(0)
        header = {"descr": dtype, "fortran_order": False, "shape": (rows, *item)}
        np.lib.format.write_array_header_1_0(file, header)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        rows = sum(entry["length"] for entry in self.entries)
        try:
            for key, file in self._files.items():
                self._write_header(key, rows)
                file.close()
            if kind is None:
                self._publish(rows)
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _publish(self, rows: int) -> None:
        offset = np.cumsum([0] + [entry["length"] for entry in self.entries], dtype=np.int64)
        np.save(self.temporary / "offset.npy", offset)
        columns = {key: [e[key] for e in self.entries] for key in ("name", "chain_id", "cluster", "source")}
        files = sorted({"index.json", *(path.name for path in self.temporary.iterdir())})
        index = {"format_version": FORMAT_VERSION, "chains": len(self.entries), "residues": rows, "files": files}
        (self.temporary / "index.json").write_text(json.dumps(index | columns))
        _check_replaceable(self.folder)  # again: preparing takes minutes, and people put files into folders
        if self.folder.exists():
            # Readers of the old data set keep their open maps; the system refuses a rename onto a non-empty folder.
            old = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-old-", dir=self.folder.parent)) / "data"
            os.replace(self.folder, old)
            try:
                os.replace(self.temporary, self.folder)
            except OSError:
                os.replace(old, self.folder)
                raise
            for name in _own_files(old):  # by name: what came in at the last moment stays, and the folder with it
                (old / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                old.rmdir()
                old.parent.rmdir()
        else:
            os.replace(self.temporary, self.folder)


def _own_files(folder: Path) -> set[str]:
    """The files of the data set in a folder, as its index names them; none if the index is not one of ours."""
    try:
        index = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError):
        return set()
    if (
        not isinstance(index, dict)
        or "format_version" not in index
        or not {"chains", "residues", "name"} <= index.keys()
    ):
        return set()
    named = index.get("files", [*(f"{key}.npy" for key in _ARRAYS), "offset.npy", "rejected.csv"])
    return {"index.json"} | {name for name in named if isinstance(name, str) and Path(name).name == name}


def _check_replaceable(folder: Path) -> None:
    """Raise ``FileExistsError`` if making a data set under this name would remove anything but an older data set."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file, expected a folder; choose another name")
    own = _own_files(folder)
    others = sorted(path.name for path in folder.iterdir() if path.name not in own or path.is_dir())
    if others:
        shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        kind = "beside the data set also holds" if own else "is not a protein data set and holds"
        raise FileExistsError(f"{folder}: {kind} {shown}; move that away or choose another folder")


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
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no protein data set here (index.json is missing); make one with `prepare`")
    try:
        index = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged index ({error}); run `prepare` again") from error
    if index.get("format_version") != FORMAT_VERSION:
        found = index.get("format_version")
        raise ValueError(f"{path}: format version {found}, this program reads {FORMAT_VERSION}; run `prepare` again")
    return index
