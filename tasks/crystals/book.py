"""The folder that a run fills: structure files as they come, one CSV row each, never an older one overwritten."""

import csv
import errno
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from manifoldflow.tasks.crystals.describe import COLUMNS, Facts
from manifoldflow.tasks.crystals.structure import Crystal
from manifoldflow.tasks.crystals.writing import write_crystal

SUFFIX = {"cif": ".cif", "poscar": ".vasp", "extxyz": ".extxyz"}
TABLE = "structures.csv"


class Book:
    """Structure files and their table.

    Args:
        folder: made if needed.
        format: ``"cif"``, ``"poscar"`` or ``"extxyz"``.
        symmetrise: tolerance in angstrom: files hold the idealised conventional cell.

    Raises:
        ValueError: the folder is a file, or its table has other columns.
    """

    def __init__(self, folder: str | Path, format: str = "cif", symmetrise: float | None = None) -> None:
        self.folder, self.suffix, self.symmetrise = Path(folder), SUFFIX[format], symmetrise
        if symmetrise is not None and not symmetrise > 0:
            raise ValueError(
                f"--symmetrise {symmetrise:g}: the tolerance is a positive length in angstrom, such as 0.1"
            )
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"--out {self.folder}: is a file, expected a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.table = self.folder / TABLE
        self.older: list[dict[str, str]] = []
        self.written = 0
        if self.table.exists() and self.table.stat().st_size:
            with self.table.open(newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                if tuple(rows.fieldnames or ()) != COLUMNS:
                    raise ValueError(f"{self.table}: is a table of another kind; choose another folder with --out")
                self.older = [row for row in rows if None not in row.values()]  # the last may have been cut off
        self._last: dict[str, int] = {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Within, no other run that fills this folder takes a number or adds a row, where the system can see to that."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            with suppress(ImportError, OSError):  # not on Windows, nor on some network drives
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write(self, crystal: Crystal, stem: str) -> str:
        """Write a structure under the next free number, ``STEM_000.cif``; the file's name."""
        base = re.sub(r"[^\w.+-]", "_", stem)
        number = self._last.get(base, -1) + 1
        with self._alone():
            while any((self.folder / f"{base}_{number:03d}{suffix}").exists() for suffix in SUFFIX.values()):
                number += 1
            self._last[base] = number
            name = f"{base}_{number:03d}{self.suffix}"
            self._put(name, crystal)
        self.written += 1
        return name

    def write_relaxed(self, crystal: Crystal, file: str) -> str:
        """Write the relaxed version beside a structure, ``STEM_000_relaxed.cif``."""
        name = f"{file.removesuffix(self.suffix)}_relaxed{self.suffix}"
        self._put(name, crystal)
        return name

    def _put(self, name: str, crystal: Crystal) -> None:
        try:
            write_crystal(self.folder / name, crystal, self.symmetrise)
        except OSError as error:
            raise self._full(error, self.folder / name) from None

    def add(self, rows: Sequence[Facts]) -> None:
        """Add rows to the table, on the disk when this returns; a row is whole or not there."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        with self._alone():
            before = self.table.stat().st_size if self.table.exists() else 0
            if not before:
                writer.writerow(COLUMNS)
            elif self._is_open():
                text.write("\n")  # a row that was cut off stays alone
            writer.writerows(row.row() for row in rows)
            try:
                with self.table.open("ab") as file:
                    file.write(text.getvalue().encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                with suppress(OSError):
                    if before:
                        os.truncate(self.table, before)
                    else:
                        self.table.unlink(missing_ok=True)
                raise self._full(error, self.table) from None

    def _is_open(self) -> bool:
        """Whether the table's last line does not end."""
        with self.table.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) not in b"\r\n"

    def _full(self, error: OSError, path: Path) -> OSError:
        """The same error with what is safe."""
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        kept = (
            f"{self.written} structures of this run are in {self.folder}/ and stay"
            if self.written
            else "nothing was written"
        )
        return OSError(f"{path}: {what}; {kept}")
