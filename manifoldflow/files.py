"""The one writer of files, complete or not at all, and a reader of packed files that knows when to stop."""

import errno
import gzip
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LIMIT = 2**30
"""Bytes that a packed file may unpack to, unless told otherwise. Plain files have no limit: they lie on the disk already."""

_DESCRIPTOR = re.compile(r"/(?:dev/(stdin|stdout|stderr)|(?:dev|proc/self|proc/thread-self)/fd/(\d+))")
_RUST = re.compile(r"\(os error (\d+)\)")  # how safetensors says what the system told it


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A fresh file to write, which takes the place of ``path`` when the block ends well and goes when it does not.

        with atomic("table.csv") as fresh, fresh.open("w", newline="") as file:
            csv.writer(file).writerows(rows)

    The fresh file lies in the same folder under the name ``.NAME.xxxxxxxx.new.SUFFIX`` and has the ending of ``path``, for
    writers that choose the format by it. Folders above are made. An existing file keeps its mode, and a link to a file stays a
    link. What is no regular file (a device, a pipe, ``/dev/stdout``) is written through: the fresh file then lies in the
    system's temporary folder, and its bytes are sent when the block ends.

    Args:
        path: the file to write.

    Raises:
        IsADirectoryError: ``path`` is a folder.
        OSError: it cannot be written (rights, a full disk); the message names ``path``, never the fresh file.
    """
    path = Path(path)
    number, found = _descriptor(path), _stat(path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected a file to write", str(path))
    if found is not None and stat.S_ISSOCK(found.st_mode) and number is None:
        raise OSError(errno.ENXIO, "is a socket, expected a file to write", str(path))
    if number is not None or (found is not None and not stat.S_ISREG(found.st_mode)):
        with _through(path, number) as fresh:
            yield fresh
        return
    target = Path(os.path.realpath(path))
    if found is not None and not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "is not writable", str(path))
    name = target.name.encode()[:100].decode(errors="ignore")  # a name has at most 255 bytes
    fresh = target.with_name(f".{name}.{secrets.token_hex(4)}.new{target.suffix[:20]}")
    with _named(path, fresh):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the mode that the umask leaves
        try:
            mode = stat.S_IMODE((found or fresh.stat()).st_mode)
            yield fresh
            if found is not None:
                with suppress(OSError):  # only root may give files away; the content counts
                    os.chown(fresh, found.st_uid, found.st_gid)
            os.chmod(fresh, mode)
            os.replace(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file, complete or not at all (:func:`atomic`)."""
    with atomic(path) as fresh:
        fresh.write_bytes(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, lines ending as they do in ``text``, complete or not at all (:func:`atomic`)."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, content: Any) -> Path:
    """Write JSON, complete or not at all (:func:`atomic`)."""
    return write_text(path, json.dumps(content, indent=1) + "\n")


def open_bytes(path: str | Path, limit: int = LIMIT) -> IO[bytes]:
    """Open a file for reading, unpacked if its content is gzip, whatever its name.

    Args:
        path: the file; a pipe will do.
        limit: bytes that a packed file may unpack to.

    Raises:
        ValueError: while reading: the packed data are damaged, cut short or unpack to more than ``limit``.
    """
    file = open(path, "rb")
    if file.peek(2)[:2] != b"\x1f\x8b":
        return file
    return io.BufferedReader(_Bounded(file, str(path), limit), 2**16)


def open_text(path: str | Path, limit: int = LIMIT, encoding: str = "utf-8-sig", newline: str | None = None) -> IO[str]:
    """:func:`open_bytes` as text: UTF-8, with or without the mark of Windows in front."""
    return io.TextIOWrapper(open_bytes(path, limit), encoding=encoding, newline=newline)  # type: ignore[arg-type]


def read_bytes(path: str | Path, limit: int = LIMIT) -> bytes:
    """The content of a file, unpacked if it is gzip (:func:`open_bytes`)."""
    with open_bytes(path, limit) as file:
        return file.read()


def open_npz(path: str | Path, limit: int = LIMIT) -> Any:
    """The arrays of an NPZ file, also gzipped, as ``numpy.load`` gives them without pickles; none is read yet.

    Args:
        path: the file.
        limit: bytes that its arrays may unpack to, all together.

    Raises:
        ValueError: it unpacks to more, or is no NPZ (``numpy`` and ``zipfile`` raise their own errors as well).
    """
    import numpy as np

    content = io.BytesIO(read_bytes(path, limit))
    with zipfile.ZipFile(content) as packed:  # a member never gives more than it states
        size = sum(member.file_size for member in packed.infolist())
    if size > limit:
        raise ValueError(f"{path}: unpacks to {size / 1e6:,.0f} MB, more than {limit / 1e6:,.0f}")
    content.seek(0)
    return np.load(content, allow_pickle=False)


class _Bounded(io.RawIOBase):
    """Unpacked gzip that ends in an error, not in a full memory."""

    def __init__(self, file: IO[bytes], name: str, limit: int) -> None:
        self._file, self._name, self._limit, self._count = file, name, limit, 0
        self._unpacked = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            count = self._unpacked.readinto(buffer)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{self._name}: the gzip data are damaged or cut short, not a whole gzip file ({error}); fetch the file again"
            ) from None
        self._count += count
        if self._count > self._limit:
            raise ValueError(
                f"{self._name}: unpacks to more than {self._limit / 1e6:,.0f} MB, and reading stopped there; "
                "if that is meant, unpack it first (gunzip) and pass the plain file"
            )
        return count

    def close(self) -> None:
        if not self.closed:
            self._unpacked.close()
            self._file.close()
        super().close()


def _stat(path: Path) -> os.stat_result | None:
    """What is at ``path``, links followed; None if nothing is, or a link that points nowhere yet."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        above = next(p for p in path.parents if p.exists())
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is a file, expected a folder", str(path)) from None


def _descriptor(path: Path) -> int | None:
    """The number of the open file that ``/dev/stdout`` and its like stand for, also behind links.

    Where it is a file of the shell (``> out.txt``), replacing that file would lose all that is printed afterwards.
    """
    at = os.path.abspath(path)
    for _ in range(40):  # as many links as Linux follows
        if found := _DESCRIPTOR.fullmatch(at.replace(f"/proc/{os.getpid()}/", "/proc/self/")):
            return int(found[2]) if found[2] else ("stdin", "stdout", "stderr").index(found[1])
        try:
            at = os.path.normpath(os.path.join(os.path.dirname(at), os.readlink(at)))
        except OSError:
            return None
    return None


@contextmanager
def _through(path: Path, number: int | None) -> Iterator[Path]:
    """A file in the temporary folder, whose bytes then go to the open file of that number, or to ``path`` as it is."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / f"fresh{path.suffix[:20]}"
        with _named(path, fresh):
            fresh.touch()
            yield fresh
            sys.stdout.flush()
            sys.stderr.flush()
            to = os.dup(number) if number is not None else os.open(path, os.O_WRONLY)
            with os.fdopen(to, "wb") as out, fresh.open("rb") as made:
                shutil.copyfileobj(made, out)


@contextmanager
def _named(path: Path, fresh: Path) -> Iterator[None]:
    """Errors of the system that name the file that was asked for, not the one that stands in for it."""
    try:
        yield
    except OSError as error:
        if error.errno is None or str(error.filename) not in ("None", str(fresh), str(fresh.parent)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:  # safetensors has an error class of its own
        if found := _RUST.search(str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise
