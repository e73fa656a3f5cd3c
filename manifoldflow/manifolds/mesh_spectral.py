r"""Eigenfunctions of the Laplacian of a triangle mesh, and the premetrics made of them.

The eigenproblem is :math:`L \phi = \lambda M \phi` with the cotangent Laplacian L and the lumped mass M of
`robust_laplacian` (Sharp & Crane 2020), whose intrinsic Delaunay triangulation keeps all weights non-negative where the
given triangles are thin; on well-shaped triangles it is the ordinary cotangent Laplacian.
"""

import contextlib
import functools
import os
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse.linalg
from numpy.typing import NDArray

from manifoldflow.files import atomic
from manifoldflow.manifolds.mesh_reading import Geometry

Kernel = Literal["biharmonic", "diffusion", "commute"]
KERNELS = ("biharmonic", "diffusion", "commute")

LONG = 2_000_000
"""Vertices times eigenpairs from which on progress is shown (about a second of work)."""


def cache_folder() -> Path:
    """Where eigenpairs are kept: ``MANIFOLDFLOW_CACHE``, else ``XDG_CACHE_HOME/manifoldflow``, else ``~/.cache/manifoldflow``."""
    if own := os.environ.get("MANIFOLDFLOW_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "manifoldflow"


def spectral_weights(values: NDArray[np.float64], kernel: Kernel, tau: float) -> NDArray[np.float64]:
    r"""Weights :math:`w(\lambda)` of :math:`d^2(x, y) = \sum_k w(\lambda_k) (\phi_k(x) - \phi_k(y))^2`.

    Biharmonic :math:`\lambda^{-2}` (Lipman et al. 2010), commute time :math:`\lambda^{-1}`, diffusion
    :math:`e^{-2 \tau \lambda}` (Coifman & Lafon 2006).

    Args:
        values: eigenvalues without 0, in 1 / length^2.
        kernel: which one.
        tau: diffusion time in length^2.
    """
    if kernel == "biharmonic":
        return values**-2.0
    if kernel == "commute":
        return values**-1.0
    return np.exp(-2 * tau * values)


@functools.lru_cache(maxsize=16)
def eigenpairs(geometry: Geometry, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ``count`` smallest positive eigenvalues ``(count,)`` and their eigenfunctions at the vertices ``(V, count)``.

    Eigenfunctions have mean square 1 / area, and the sign that makes their largest value positive. Results are kept in
    :func:`cache_folder`; a damaged file is made again.
    """
    file = cache_folder() / f"eigenpairs-{geometry.key[:32]}-{count}.npz"
    known = _read(file, (geometry.counts[0], count))
    if known is None:
        known = _solve(geometry, count)
        try:
            _write(file, *known)
        except OSError as error:
            warnings.warn(
                f"eigenpairs could not be kept in {file.parent}: {error}; set MANIFOLDFLOW_CACHE", stacklevel=2
            )
    return known


def _read(file: Path, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as kept:
            values, functions = kept["values"], kept["functions"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zipfile.zlib.error):  # type: ignore[attr-defined]
        values, functions = np.empty(0), np.empty((0, 0))
    if values.shape != shape[1:] or functions.shape != shape or not np.isfinite(functions).all():
        warnings.warn(f"the kept eigenpairs {file} are damaged and are computed again", stacklevel=3)
        return None
    return values, functions


def _write(file: Path, values: NDArray[np.float64], functions: NDArray[np.float64]) -> None:
    with atomic(file) as fresh, fresh.open("wb") as out:
        np.savez(out, values=values, functions=functions)


def _solve(geometry: Geometry, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    vertices = geometry.counts[0]
    if not 1 <= count <= vertices - 2:
        raise ValueError(f"a mesh of {vertices} vertices has 1 to {vertices - 2} eigenpairs to give, asked for {count}")
    try:
        import robust_laplacian
    except ImportError as error:
        raise ImportError("spectra of meshes need robust_laplacian: pip install 'manifoldflow[meshes]'") from error
    stiffness, mass = robust_laplacian.mesh_laplacian(geometry.vertices, geometry.faces)
    stiffness, mass = stiffness.tocsc(), mass.tocsc()
    # A small negative shift makes the matrix positive definite: 0 itself is an eigenvalue, of the constants.
    shift = -1.0 / float(mass.sum())
    with _progress(geometry, count) as tick:
        factor = scipy.sparse.linalg.splu(stiffness - shift * mass)

        def apply(v: NDArray[np.float64]) -> NDArray[np.float64]:
            tick()
            return factor.solve(v)

        inverse = scipy.sparse.linalg.LinearOperator(stiffness.shape, matvec=apply, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(vertices)  # ARPACK's own is different in every run
        values, functions = scipy.sparse.linalg.eigsh(
            stiffness, k=count + 1, M=mass, sigma=shift, OPinv=inverse, v0=start
        )
    order = np.argsort(values)[1:]
    values, functions = values[order], functions[:, order]
    largest = np.take_along_axis(functions, np.abs(functions).argmax(0)[None], 0)
    return values, np.ascontiguousarray(functions * np.sign(largest))


@contextlib.contextmanager
def _progress(geometry: Geometry, count: int) -> Iterator[Any]:
    """A bar on stderr for the long computations; the number of solves is not known beforehand."""
    if geometry.counts[0] * count < LONG:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    text = f"{count} eigenpairs of a mesh with {geometry.counts[0]:,} vertices (kept for the next time)"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed} solves"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task(text, total=None)
        yield lambda: bar.advance(task)
