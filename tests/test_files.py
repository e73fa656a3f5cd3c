"""The one writer: complete or not at all, whatever lies at the path; the one reader of packed files: bounded."""

import errno
import gzip
import json
import os
import pty
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from manifoldflow.files import atomic, open_npz, open_text, read_bytes, write_bytes, write_json, write_text

CONTENT = b"one\ntwo\n"


def kind_of(path: Path) -> tuple[int, int]:
    """What lies at a path itself, links not followed: its type and which one it is."""
    found = path.lstat()
    return stat.S_IFMT(found.st_mode), found.st_ino


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "fifo")
    return folder / "fifo"


def link_to(target: str) -> "object":
    def make(folder: Path) -> Path:
        (folder / "link.json").symlink_to(target)
        return folder / "link.json"

    return make


def bound_socket(folder: Path) -> Path:
    os.chdir(folder)  # the name of a socket is short
    made = socket.socket(socket.AF_UNIX)
    made.bind("socket")
    made.close()
    return folder / "socket"


def full_folder(folder: Path) -> Path:
    (folder / "inner").mkdir()
    (folder / "inner" / "kept").write_text("kept")
    return folder / "inner"


def link_to_fifo(folder: Path) -> Path:
    (folder / "link").symlink_to(fifo(folder))
    return folder / "link"


def link_to_folder(folder: Path) -> Path:
    (folder / "link").symlink_to(full_folder(folder), target_is_directory=True)
    return folder / "link"


def loop(folder: Path) -> Path:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    return folder / "a"


def block_device(folder: Path) -> Path:
    try:
        os.mknod(folder / "disk", 0o600 | stat.S_IFBLK, os.makedev(240, 77))
    except OSError:
        pytest.skip("only root makes devices")
    return folder / "disk"


def own_null(folder: Path) -> Path:
    try:
        os.mknod(folder / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("only root makes devices")
    return folder / "null"


SPECIAL = {
    "null": lambda _: Path("/dev/null"),
    "zero": lambda _: Path("/dev/zero"),
    "full": lambda _: Path("/dev/full"),
    "random": lambda _: Path("/dev/urandom"),
    "terminal": lambda _: Path("/dev/tty"),
    "own device": own_null,
    "block device": block_device,
    "stdout": lambda _: Path("/dev/stdout"),
    "stderr": lambda _: Path("/dev/stderr"),
    "stdin": lambda _: Path("/dev/stdin"),
    "descriptor": lambda _: Path("/dev/fd/1"),
    "descriptor in /proc": lambda _: Path("/proc/self/fd/2"),
    "descriptor by process": lambda _: Path(f"/proc/{os.getpid()}/fd/1"),
    "link to null": link_to("/dev/null"),
    "link to full": link_to("/dev/full"),
    "link to stdout": link_to("/dev/stdout"),
    "socket": bound_socket,
    "folder": full_folder,
    "link to folder": link_to_folder,
    "loop": loop,
    "root": lambda _: Path("/"),
    "setting of the system": lambda _: Path("/proc/self/comm"),
}
WRITTEN = {"null", "zero", "stdout", "stderr", "descriptor", "descriptor in /proc", "descriptor by process"}
WRITTEN |= {"link to null", "link to stdout", "own device"}
REFUSED = {"full", "link to full", "socket", "folder", "link to folder", "loop", "root"}


@pytest.mark.parametrize("name", SPECIAL)
def test_nothing_special_is_replaced(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    path = SPECIAL[name](tmp_path)
    if not os.path.lexists(path):
        pytest.skip(f"no {path} here")
    before, folder = kind_of(path), sorted(tmp_path.rglob("*"))
    if stat.S_ISREG(before[0]) and str(path).startswith("/proc/"):
        with pytest.raises(OSError):  # no folder for a fresh file: an error, and nothing done
            write_bytes(path, CONTENT)
    elif name in REFUSED:
        with pytest.raises(OSError) as caught:
            write_bytes(path, CONTENT)
        assert caught.value.filename == str(path)
        assert caught.value.errno != errno.ENOSPC or "full" in name
    elif name in WRITTEN:
        write_bytes(path, CONTENT)
    else:  # depends on the machine: whether it is open for writing
        try:
            write_bytes(path, CONTENT)
        except OSError as error:
            assert error.filename == str(path)
    assert kind_of(path)[0] == before[0]
    if not str(path).startswith("/proc/"):  # made anew for everyone who looks
        assert kind_of(path) == before
    assert sorted(tmp_path.rglob("*")) == folder  # no litter


@pytest.mark.parametrize("make", [fifo, link_to_fifo])
def test_a_pipe_gets_all_bytes_and_stays(make, tmp_path):
    path = make(tmp_path)
    before, got = kind_of(path), []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    write_bytes(path, CONTENT * 50_000)
    reader.join(10)
    assert got == [CONTENT * 50_000] and kind_of(path) == before


def test_a_terminal_is_written_to():
    ours, theirs = pty.openpty()
    name = Path(os.ttyname(theirs))
    before = kind_of(name)
    write_bytes(name, b"hello")
    assert os.read(ours, 5) == b"hello" and kind_of(name) == before


@pytest.mark.parametrize("redirect", [">", ">>"])
def test_standard_output_that_is_a_file_keeps_what_is_printed_before_and_after(redirect, tmp_path):
    code = "from manifoldflow.files import write_text; print('a'); write_text('/dev/stdout', 'b\\n'); print('c')"
    (tmp_path / "out").write_text("0\n")
    subprocess.run(f'{sys.executable} -c "{code}" {redirect} {tmp_path}/out', shell=True, check=True)
    assert (tmp_path / "out").read_text() == ("0\n" if redirect == ">>" else "") + "a\nb\nc\n"


def test_a_full_disk_names_the_file_asked_for_and_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_text(tmp_path / "table.csv", "old")

    def full(self: Path, data: bytes) -> int:
        os.truncate(self, 1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as caught:
        write_bytes(path, CONTENT)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["table.csv"]


def test_a_full_disk_under_safetensors_names_the_file_asked_for(tmp_path):
    with pytest.raises(OSError) as caught, atomic(tmp_path / "model.safetensors") as fresh:
        raise RuntimeError(f"Error while serializing: I/O error: No space left on device (os error 28) at {fresh}")
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path / "model.safetensors")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_ends_the_block_leaves_the_old_file_and_no_litter(error, tmp_path):
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(error), atomic(path) as fresh:
        fresh.write_text("half")
        assert fresh.parent == tmp_path and fresh.suffix == ".txt"
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_file_keeps_its_mode_and_a_link_stays_a_link(tmp_path):
    kept = write_text(tmp_path / "data" / "kept.txt", "old")
    kept.chmod(0o640)
    (tmp_path / "link").symlink_to("data/kept.txt")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and kept.read_text() == "new"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        made = write_text(tmp_path / "new.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(made.stat().st_mode) == 0o640


def test_a_link_that_points_nowhere_yet_makes_its_target(tmp_path):
    (tmp_path / "link").symlink_to("later/file")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later" / "file").read_text() == "x"


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = write_text(tmp_path / "a", "old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for everyone but root
    with pytest.raises(PermissionError, match="not writable"):
        write_text(path, "new")
    assert path.read_text() == "old"


@pytest.mark.parametrize("name", ["n" * 250 + ".txt", "ä" * 120 + ".pdb"])
def test_a_name_as_long_as_the_system_allows(name, tmp_path):
    write_text(tmp_path / name, "x")
    assert os.listdir(tmp_path) == [name]


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    write_text(tmp_path / "a", "x")
    with pytest.raises(NotADirectoryError, match="a is a file, expected a folder"):
        write_text(tmp_path / "a" / "b" / "c.txt", "x")


def test_text_and_json_are_utf8_with_line_ends_as_given(tmp_path):
    assert write_text(tmp_path / "a", "ä\r\nb\n").read_bytes() == "ä\r\nb\n".encode()
    assert json.loads(write_json(tmp_path / "b.json", {"å": [1, 2.5]}).read_text()) == {"å": [1, 2.5]}


def test_packed_files_are_read_by_their_content_and_only_to_the_limit(tmp_path):
    plain, packed = tmp_path / "a.gz", tmp_path / "b.txt"
    plain.write_bytes("\ufeffä\n".encode())
    packed.write_bytes(gzip.compress(b"abc\n" * 1000) + gzip.compress(b"end"))  # two members, as bgzip writes
    with open_text(plain) as file:
        assert file.read() == "ä\n"
    with open_text(packed) as file:
        assert next(file) == "abc\n"
    assert read_bytes(packed, limit=4003) == b"abc\n" * 1000 + b"end"
    with pytest.raises(ValueError, match=r"b\.txt: unpacks to more than .* MB.*gunzip"):
        read_bytes(packed, limit=4002)
    packed.write_bytes(packed.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"b\.txt: the gzip data are damaged or cut short"):
        read_bytes(packed)


def test_a_small_file_that_unpacks_to_gigabytes_costs_little(tmp_path):
    piece = gzip.compress(bytes(2**22), compresslevel=1)
    (tmp_path / "bomb.gz").write_bytes(piece * 600)  # 2.5 GB
    code = f"""
import resource
from manifoldflow.files import open_bytes
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    with open_bytes({str(tmp_path / "bomb.gz")!r}, limit=2**26) as file:
        file.read()
except ValueError as error:
    print(error, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "unpacks to more than 67 MB" in out
    assert int(out.split()[-1]) < 256  # MB


@pytest.mark.parametrize("packed", [False, True])
def test_arrays_that_unpack_to_too_much_are_refused_before_they_are_read(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(10**6), b=np.arange(3))
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    with open_npz(path) as arrays:
        assert arrays["b"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"x\.npz: unpacks to 8 MB, more than 1"):
        open_npz(path, limit=10**6)


def test_there_is_no_second_atomic_writer() -> None:
    root = Path(__file__).resolve().parents[1]
    folders = {
        "manifoldflow/training/keeper.py",
        "tasks/common/store.py",
    }  # a finished file renamed, and whole folders
    found = {
        str(path.relative_to(root))
        for part in ("manifoldflow", "tasks")
        for path in (root / part).rglob("*.py")
        if "tasks" not in path.relative_to(root).parts[1:]
        and re.search(r"os\.replace\(|mkstemp\(|NamedTemporaryFile\(|\.new\"\)|\.tmp\"\)", path.read_text())
    }
    assert found - folders == {"manifoldflow/files.py"}
