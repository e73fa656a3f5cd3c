"""The text of a file, plain or gzipped."""

import gzip
import zlib
from pathlib import Path

MOST = 2**30
"""Bytes that a gzip file may unpack to: more is a mistake, or made to fill the memory."""


def read_text(path: str | Path, *, most: int = MOST) -> str:
    """UTF-8 text, with lines that end as they do on Unix, whatever wrote it.

    Args:
        path: of the file; whether it is gzipped is told by its content.
        most: bytes that it may unpack to.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither text nor a whole gzip file, or one that unpacks to too much.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    raw = path.read_bytes()
    try:
        if raw[:2] == b"\x1f\x8b":
            with gzip.open(path, "rb") as file:
                raw = file.read(most + 1)
            if len(raw) > most:
                raise ValueError(f"{path} unpacks to more than {most:,} bytes; unpack it and split it")
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither text nor a whole gzip file: {error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
