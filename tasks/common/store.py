"""Data sets on disk: a folder of .npy files that grow item by item, and index.json with one entry per item."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, ClassVar

import numpy as np


class FolderWriter:
    """Write items of any length one by one into a data set folder, which appears under its name only when complete.

    Use as a context manager; an exception inside removes what was written and leaves an older data set of that name
    as it was. ``.npy`` files grow on disk, so the memory needed is that of one item. What a kind of data set holds is said
    by a subclass: its arrays and names, and :meth:`columns` of the index.

    Args:
        folder: the data set to make. An older data set there is replaced if the folder holds nothing else; a folder
            with files that its index does not name is an error, whatever they are.
    """

    arrays: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]]
    """Type and shape of an element of every array whose first axis grows; ``offset.npy`` says where items begin."""
    kind: ClassVar[str]
    """What the data set is called in messages, such as "protein"."""
    items: ClassVar[str]
    """What the index calls the number of items, such as "chains"."""
    rows: ClassVar[str]
    """What the index calls the length of the arrays, such as "residues"."""
    version: ClassVar[int]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if self.folder.is_symlink():  # the data set goes where the link leads
            self.folder = self.folder.resolve()
        self._check_replaceable()
        self.entries: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> Any:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        self.temporary.chmod(0o755)
        for key in self.arrays:
            self._files[key] = open(self.temporary / f"{key}.npy", "w+b")
            self._write_header(key, 0)
        return self

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def columns(self) -> dict[str, list[Any]]:
        """What the index says of every item, from :attr:`entries`."""
        raise NotImplementedError

    def save_more(self) -> None:
        """Write further arrays into :attr:`temporary`; none unless a subclass has some."""

    def append(self, name: str, length: int, arrays: Mapping[str, Any], entry: dict[str, Any]) -> None:
        """Add an item; its name must be new and its arrays of one length."""
        if name in self._names:
            raise ValueError(f"two {self.items} are named {name!r}; names must be unique in a data set")
        converted = {key: np.asarray(arrays[key], dtype) for key, (dtype, _) in self.arrays.items()}
        for key, (_, item) in self.arrays.items():
            if converted[key].shape != (length, *item):
                raise ValueError(f"{name}: {key} has shape {converted[key].shape}, expected {(length, *item)}")
        for key, array in converted.items():
            self._files[key].write(np.ascontiguousarray(array).tobytes())
        self._names.add(name)
        self.entries.append({"name": name, "length": length} | entry)

    def _write_header(self, key: str, rows: int) -> None:
        # numpy pads the header for a growing first axis, so it can be rewritten in place once the count is known.
        dtype, item = self.arrays[key]
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
        except OSError as fault:
            self._name(fault)
            raise
        finally:
            self._name(error)
            shutil.rmtree(self.temporary, ignore_errors=True)

    def _name(self, error: BaseException | None) -> None:
        """A full disk names no file of itself; an error of our own (without a number) has its own words."""
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(self.folder)

    def _publish(self, rows: int) -> None:
        offset = np.cumsum([0] + [entry["length"] for entry in self.entries], dtype=np.int64)
        np.save(self.temporary / "offset.npy", offset)
        self.save_more()
        files = sorted({"index.json", *(path.name for path in self.temporary.iterdir())})
        index = {"format_version": self.version, self.items: len(self.entries), self.rows: rows, "files": files}
        (self.temporary / "index.json").write_text(json.dumps(index | self.columns()))
        self._check_replaceable()  # again: preparing takes minutes, and people put files into folders
        if self.folder.exists():
            # Readers of the old data set keep their open maps; the system refuses a rename onto a non-empty folder.
            old = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-old-", dir=self.folder.parent)) / "data"
            os.replace(self.folder, old)
            try:
                os.replace(self.temporary, self.folder)
            except OSError:
                os.replace(old, self.folder)
                raise
            for name in self._own_files(old):  # by name: what came in at the last moment stays, and the folder with it
                (old / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                old.rmdir()
                old.parent.rmdir()
        else:
            os.replace(self.temporary, self.folder)

    def _own_files(self, folder: Path) -> set[str]:
        """The files of the data set in a folder, as its index names them; none if the index is not one of ours."""
        try:
            index = json.loads((folder / "index.json").read_text())
        except (OSError, ValueError):
            return set()
        if not isinstance(index, dict) or not {"format_version", self.items, self.rows, "name"} <= index.keys():
            return set()
        named = index.get("files", [*(f"{key}.npy" for key in self.arrays), "offset.npy", "rejected.csv"])
        return {"index.json"} | {name for name in named if isinstance(name, str) and Path(name).name == name}

    def _check_replaceable(self) -> None:
        """Raise ``FileExistsError`` if making a data set under this name would remove anything but an older data set."""
        folder = self.folder
        if not folder.exists():
            return
        if not folder.is_dir():
            raise FileExistsError(f"{folder}: is a file, expected a folder; choose another name")
        own = self._own_files(folder)
        others = sorted(path.name for path in folder.iterdir() if path.name not in own or path.is_dir())
        if others:
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
            kind = "beside the data set also holds" if own else f"is not a {self.kind} data set and holds"
            raise FileExistsError(f"{folder}: {kind} {shown}; move that away or choose another folder")


def read_folder_index(folder: Path, version: int, kind: str) -> dict[str, Any]:
    """The index of a data set folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """
    path = folder / "index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no {kind} data set here (index.json is missing); make one with `prepare`")
    try:
        index = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged index ({error}); run `prepare` again") from error
    if index.get("format_version") != version:
        found = index.get("format_version")
        raise ValueError(f"{path}: format version {found}, this program reads {version}; run `prepare` again")
    return index
