"""The preparation command: structure files and npz sets in, one memory-mapped data set out."""

import csv
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from manifoldflow.tasks.proteins.backbones import is_structure, is_trajectory
from manifoldflow.tasks.proteins.reading import SUFFIXES, read_structure, split_suffix
from manifoldflow.tasks.proteins.records import FARTHEST
from manifoldflow.tasks.proteins.store import DatasetWriter
from manifoldflow.tasks.proteins.structure import Chain, read_npz


@dataclass
class Prepared:
    """What :func:`prepare` made.

    Args:
        folder: the data set.
        chains, residues: what is in it.
        rejected: ``(source, chain, reason)`` of every file and chain that is not; chain is empty for a whole file.
    """

    folder: Path
    chains: int = 0
    residues: int = 0
    rejected: list[tuple[str, str, str]] = field(default_factory=list)


def prepare(
    inputs: list[str] | str,
    out: str,
    min_length: int = 50,
    max_length: int = 512,
    max_breaks: int = 3,
    clusters: str | None = None,
    workers: int = 0,
) -> Prepared:
    """Make one training data set of protein structure files.

    Goes on past files that cannot be read and chains that do not fit, lists them with reasons at the end and in
    ``rejected.csv`` of the data set. The data set appears under its name only when complete.

    Args:
        inputs: file (.pdb, .ent, .pqr, .cif, .mmcif, .bcif, also .gz; .npz in our layout) or folder, searched recursively;
            several as a list, such as [a.cif,structures/].
        out: folder of the data set; an older data set there is replaced, a folder with anything else in it is refused.
        min_length: chains with fewer residues are left out.
        max_length: chains with more residues are left out.
        max_breaks: chains with more breaks (missing residues) are left out.
        clusters: CSV with columns ``name`` and ``cluster30`` or ``cluster``, one row per chain, so that validation
            can be split by cluster. Default: ``chains.csv`` beside an npz input, where there is one. Chains of unknown
            cluster share one with chains of the same sequence.
        workers: processes that read files; 0 reads in this one.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: no chain is left.
    """
    from rich.progress import Progress

    if min_length < 1 or max_length < min_length:
        raise ValueError(f"lengths must be 1 <= min_length <= max_length, got {min_length} and {max_length}")
    if max_breaks < 0 or workers < 0:
        raise ValueError(f"max_breaks and workers must be at least 0, got {max_breaks} and {workers}")
    files, trajectories = _find([inputs] if isinstance(inputs, str) else inputs)
    cluster_of = _read_clusters(files, clusters)
    result = Prepared(Path(out))
    why = "a trajectory by its name: its first model is noise; name the file itself to use that"
    result.rejected += [(str(path), "", why) for path in trajectories]
    with DatasetWriter(out) as writer:
        with Progress(transient=True) as progress:
            task = progress.add_task("reading structures", total=len(files))
            for path, chains, problem in _read_all(files, workers):
                progress.advance(task)
                if problem:
                    result.rejected.append((str(path), "", problem))
                for chain in chains:
                    reason = _unfit(chain, min_length, max_length, max_breaks)
                    if chain.name in writer:
                        reason = "a chain of this name was read before"
                    if reason:
                        result.rejected.append((str(path), chain.name, reason))
                    else:
                        writer.add(chain, cluster_of.get(chain.name, f"sequence {chain.sequence}"), str(path))
        if not writer.entries:
            raise ValueError(f"no chain is left of {len(files)} files; the first reason: {_line(result.rejected[0])}")
        with open(writer.temporary / "rejected.csv", "w", newline="") as file:
            csv.writer(file).writerows([("source", "chain", "reason"), *result.rejected])
        result.chains, result.residues = len(writer.entries), sum(entry["length"] for entry in writer.entries)
    _report(result, len(files))
    return result


def _find(inputs: list[str]) -> tuple[list[Path], list[Path]]:
    """Every readable file of the inputs, each once, in a fixed order, and the trajectories that were left out.

    A file given by name is kept whatever it is.
    """
    files: dict[Path, None] = {}
    left_out: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if split_suffix(p)[1] in (*SUFFIXES, ".npz") and p.is_file())
            if not inside:
                raise ValueError(f"{path}: no structure files inside; expected {', '.join(SUFFIXES)} (or .gz) or .npz")
            noise = [p for p in inside if is_structure(p) and is_trajectory(p)]
            files.update(dict.fromkeys(p for p in inside if p not in noise))
            left_out += noise
        elif path.exists():
            files[path] = None
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not files:
        if left_out:
            raise ValueError(f"the inputs hold nothing but trajectories, such as {left_out[0]}")
        raise ValueError("no inputs; name at least one file or folder")
    return list(files), left_out


def _read(path: Path) -> tuple[Path, list[Chain], str]:
    """Chains of a file, or why there are none."""
    try:
        return path, read_npz(path) if path.suffix.lower() == ".npz" else read_structure(path), ""
    except ImportError:
        raise  # a missing package is no fault of the file
    except Exception as error:  # one odd file must not end a run over many
        text = " ".join(str(error).split()).removeprefix(f"{path}: ")
        return path, [], text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def _read_all(files: list[Path], workers: int) -> Iterator[tuple[Path, list[Chain], str]]:
    if workers == 0:
        yield from map(_read, files)
        return
    # Not fork: the parent may hold the threads of torch.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_read, files, chunksize=max(1, min(64, len(files) // (8 * workers))))


def _unfit(chain: Chain, min_length: int, max_length: int, max_breaks: int) -> str:
    breaks = int(chain.break_after.sum())
    farthest = float(np.abs(chain.coords).max(initial=0.0))
    if not farthest <= FARTHEST:  # of an npz; files of other kinds are refused while they are read
        return "coordinates that are not finite" if np.isnan(farthest) else f"a coordinate beyond {FARTHEST:,.0f} A"
    if len(chain) < min_length:
        return f"{len(chain)} residues, fewer than {min_length}"
    if len(chain) > max_length:
        return f"{len(chain)} residues, more than {max_length}"
    return f"{breaks} chain breaks, more than {max_breaks}" if breaks > max_breaks else ""


def _read_clusters(files: list[Path], given: str | None) -> dict[str, str]:
    """Cluster by chain name."""
    if given is not None:
        tables = [Path(given)]
        if not tables[0].is_file():
            raise FileNotFoundError(f"{given}: no such file")
    else:
        beside = dict.fromkeys(p.parent / "chains.csv" for p in files if p.suffix.lower() == ".npz")
        tables = [path for path in beside if path.is_file()]
    cluster_of: dict[str, str] = {}
    for table in tables:
        with open(table, newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            key = next((column for column in ("cluster30", "cluster") if column in columns), None)
            if key is None or "name" not in columns:
                raise ValueError(f"{table}: expected the columns 'name' and 'cluster30' or 'cluster', found {columns}")
            cluster_of.update((row["name"], row[key]) for row in reader if row[key])
    return cluster_of


def _line(rejected: tuple[str, str, str]) -> str:
    source, chain, reason = rejected
    return f"{source}{f', chain {chain}' if chain else ''}: {reason}"


def _report(result: Prepared, files: int, most: int = 20) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{result.folder}: {result.chains:,} chains, {result.residues:,} residues from {files:,} files")
    if result.rejected:
        console.print(f"{len(result.rejected)} left out (all in {result.folder / 'rejected.csv'}):")
        for item in result.rejected[:most]:
            console.print(f"  {_line(item)}")
        if len(result.rejected) > most:
            console.print(f"  ... and {len(result.rejected) - most} more")
