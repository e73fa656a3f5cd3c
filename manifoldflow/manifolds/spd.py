"""Symmetric positive-definite matrices, with the affine-invariant or the log-Euclidean metric."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from manifoldflow.manifolds.base import Manifold
from manifoldflow.manifolds.hyperbolic import log_sinhc
from manifoldflow.numerics import in_double_precision, in_full_precision, tiny_square


def _symmetric(a: Tensor) -> Tensor:
    return 0.5 * (a + a.mT)


def _conjugate(a: Tensor, b: Tensor) -> Tensor:
    """a b a^T, symmetrised."""
    return _symmetric(a @ b @ a.mT)


def _divided(kind: str, e: Tensor) -> Tensor:
    """Divided differences (f(a) - f(b)) / (a - b) of exp or log over all pairs of eigenvalues; f' on the diagonal."""
    a, b = e.unsqueeze(-1), e.unsqueeze(-2)
    if kind == "exp":
        r = (0.25 * (a - b) ** 2 + tiny_square(e.dtype)).sqrt()
        return (0.5 * (a + b)).exp() * r.sinh() / r
    ratio = (a - b) / (a + b)
    is_close = ratio.abs() < 0.1
    q = torch.where(is_close, ratio, 0.0) ** 2
    series = 1 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return torch.where(is_close, 2 * series / (a + b), (a.log() - b.log()) / torch.where(is_close, 1.0, a - b))


def _divided_twice(kind: str, e: Tensor) -> Tensor:
    """Second divided differences of exp or log over all triples of eigenvalues, ``(..., n, n, n)``; f'' / 2 where they meet.

    (f[a, b] - f[b, c]) / (a - c) with the two that are farthest apart as a and c; where all are close, the Taylor series
    around their mean.
    """
    first = _divided(kind, e)
    a, b, c = e[..., :, None, None], e[..., None, :, None], e[..., None, None, :]
    ab, bc, ac = first[..., :, :, None], first[..., None, :, :], first[..., :, None, :]
    gaps = torch.stack(torch.broadcast_tensors((a - c).abs(), (a - b).abs(), (b - c).abs()))
    widest, which = gaps.max(0)
    mean = (a + b + c) / 3
    scale = torch.ones_like(mean) if kind == "exp" else mean
    is_close = widest < torch.finfo(e.dtype).eps ** 0.25 * scale

    def quotient(rise: Tensor, run: Tensor) -> Tensor:
        return rise / torch.where(is_close | (run == 0), 1.0, run)

    parts = (quotient(ab - bc, a - c), quotient(ac - bc, a - b), quotient(ab - ac, b - c))
    apart = torch.where(which == 0, parts[0], torch.where(which == 1, parts[1], parts[2]))
    spread = 0.5 * ((a - mean).square() + (b - mean).square() + (c - mean).square())
    if kind == "exp":
        close = mean.exp() * (0.5 + spread / 24)
    else:
        close = -(0.5 + 0.25 * spread / mean.square()) / mean.square()
    return torch.where(is_close, close, apart)


def _spectral(kind: str, a: Tensor) -> Tensor:
    r"""exp or log of symmetric matrices, with first and second derivatives in every mode, also where eigenvalues coincide.

    Around a copy :math:`Q D Q^T` of a that carries no derivatives, :math:`\Delta = Q^T a Q - D` is 0 but for its derivatives,
    and f is its Taylor polynomial (Daleckii & Krein):

    .. math:: f(a) = Q \Bigl( f(D) + f[e_i, e_j] \Delta_{ij} + \sum_k f[e_i, e_k, e_j] \Delta_{ik} \Delta_{kj} \Bigr) Q^T
    """
    e, q = torch.linalg.eigh(a.detach())
    if kind == "log":  # a matrix whose eigenvalues span more than the digits of its numbers may come out indefinite
        e = e.maximum(torch.finfo(e.dtype).eps * e[..., -1:])
    value = torch.diag_embed(e.exp() if kind == "exp" else e.log())
    off = q.mT @ _symmetric(a) @ q - torch.diag_embed(e)
    off = off - off.detach()  # the value stays that of the eigenvalues
    pairs = off.unsqueeze(-1) * off.unsqueeze(-3)  # (..., i, k, j)
    inside = value + _divided(kind, e) * off + (_divided_twice(kind, e) * pairs).sum(-2)
    return q @ inside @ q.mT


def matrix_exp(a: Tensor) -> Tensor:
    """Exponential of symmetric matrices ``(..., n, n)``."""
    return _spectral("exp", a)


def matrix_log(a: Tensor) -> Tensor:
    """Logarithm of symmetric positive-definite matrices ``(..., n, n)``."""
    return _spectral("log", a)


def matrix_log_rate(a: Tensor, v: Tensor) -> Tensor:
    r"""How the logarithm of symmetric positive-definite matrices changes: its derivative at ``a`` along ``v``.

    .. math:: D\log(a)[v] = Q \bigl( \log[e_i, e_j] \, (Q^T v Q)_{ij} \bigr) Q^T, \qquad a = Q \operatorname{diag}(e) Q^T

    with divided differences of the eigenvalues (Daleckii & Krein). It has first derivatives in ``a`` and all in ``v``, also where
    eigenvalues coincide.

    Args:
        a: ``(..., n, n)``, symmetric positive definite.
        v: ``(..., n, n)``, symmetric.
    """
    e, q = torch.linalg.eigh(a.detach())
    e = e.maximum(torch.finfo(e.dtype).eps * e[..., -1:])
    off = q.mT @ _symmetric(a) @ q
    off = off - off.detach()
    turned = q.mT @ _symmetric(v) @ q
    pairs = turned.unsqueeze(-1) * off.unsqueeze(-3) + off.unsqueeze(-1) * turned.unsqueeze(-3)  # (..., i, k, j)
    return q @ (_divided("log", e) * turned + (_divided_twice("log", e) * pairs).sum(-2)) @ q.mT


def symmetric_basis(n: int, dtype: torch.dtype, device: torch.device | str | None = None) -> Tensor:
    """An orthonormal basis of the symmetric matrices, ``(n (n + 1) / 2, n, n)``."""
    row, column = torch.triu_indices(n, n, device=device)
    number = torch.arange(len(row), device=device)
    basis = torch.zeros(len(row), n, n, dtype=dtype, device=device)
    size = torch.where(row == column, 1.0, torch.tensor(0.5, dtype=dtype, device=device).sqrt())
    basis[number, row, column] = size
    basis[number, column, row] = size
    return basis


class _PositiveDefinite(Manifold):
    n: int
    event_ndim: ClassVar[int] = 2
    tangent_ndim: ClassVar[int] = 2
    is_hadamard: ClassVar[bool] = True
    """exp is one-to-one from every tangent space onto the manifold."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"{type(self).__name__}: n must be at least 1, got {self.n}")

    @property
    def dim(self) -> int:
        return self.n * (self.n + 1) // 2

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.n, self.n)

    def origin(
        self, shape: tuple[int, ...] = (), *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """The unit matrix."""
        return torch.eye(self.n, dtype=dtype, device=device).expand(*shape, self.n, self.n)

    @in_full_precision
    def project(self, x: Tensor) -> Tensor:
        """The symmetric part, its eigenvalues raised to round-off of the largest where they are smaller."""
        e, q = torch.linalg.eigh(_symmetric(x))
        least = torch.finfo(x.dtype).eps * e[..., -1:].abs().clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
        raised = (q * e.maximum(least).unsqueeze(-2)) @ q.mT
        return torch.where((e[..., :1] < least).unsqueeze(-1), _symmetric(raised), _symmetric(x))

    def to_tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return _symmetric(u)

    def is_minimising(self, x: Tensor, u: Tensor) -> Tensor:
        """Every geodesic is."""
        return torch.ones_like(u[..., 0, 0], dtype=torch.bool)

    @in_full_precision
    def residual(self, x: Tensor) -> Tensor:
        """The larger of the asymmetry and the most negative eigenvalue."""
        skew = (x - x.mT).abs().flatten(-2).amax(-1)
        return skew.maximum(-torch.linalg.eigvalsh(_symmetric(x))[..., 0])


@dataclass(frozen=True)
class SPD(_PositiveDefinite):
    r"""Symmetric positive-definite matrices with the affine-invariant metric
    :math:`\langle u, v \rangle_x = \mathrm{tr}(x^{-1} u x^{-1} v)` (Pennec et al. 2006).

    Points and tangents have shape ``(..., n, n)``; a tangent is the rate of change of the matrix. Everything is computed
    after :math:`L^{-1} \cdot L^{-T}` with the Cholesky factor L of x, an isometry that takes x to the unit matrix; float32 in
    float64, as the condition of x comes in squared.

    Args:
        n: size of the matrices; the dimension is n (n + 1) / 2.
    """

    n: int

    @in_double_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`L \exp(L^{-1} u L^{-T}) L^T`."""
        root = _cholesky(x)
        return _conjugate(root, matrix_exp(_whiten(root, u)))

    @in_double_precision
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        root = _cholesky(x)
        return _conjugate(root, matrix_log(_whiten(root, y)))

    @in_double_precision
    def dist(self, x: Tensor, y: Tensor) -> Tensor:
        """Root of the sum of the squared logarithms of the eigenvalues of y in units of x."""
        squared = matrix_log(_whiten(_cholesky(x), y)).square().sum((-2, -1))
        is_zero = squared <= 0
        return torch.where(is_zero, 0.0, squared.where(~is_zero, 1.0).sqrt())

    @in_double_precision
    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
        root = _cholesky(x)
        return (_whiten(root, u) * _whiten(root, v)).sum((-2, -1))

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        return u

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return _symmetric(v)

    @in_double_precision
    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        r""":math:`x\, \mathrm{sym}(g)\, x`."""
        return _symmetric(x @ _symmetric(g) @ x)

    @in_double_precision
    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        r""":math:`L \sqrt{m}\, (L^{-1} u L^{-T}) \sqrt{m} L^T` with :math:`m = L^{-1} y L^{-T}`."""
        root = _cholesky(x)
        half = matrix_exp(0.5 * matrix_log(_whiten(root, y)))
        return _conjugate(root, _conjugate(half, _whiten(root, u)))

    @in_double_precision
    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        root = _cholesky(x)
        e, q = torch.linalg.eigh(_whiten(root, w))
        change = q.mT @ _whiten(root, v) @ q / _divided("exp", e)
        return _conjugate(root, _conjugate(q, change))

    @in_double_precision
    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        r""":math:`\sum_{i<j} \log\frac{\sinh(\delta_{ij}/2)}{\delta_{ij}/2}` of the differences of the eigenvalues of
        :math:`L^{-1} u L^{-T}`."""
        e = torch.linalg.eigvalsh(_whiten(_cholesky(x), u))
        squared = 0.25 * (e.unsqueeze(-1) - e.unsqueeze(-2)) ** 2
        return 0.5 * log_sinhc(squared).sum((-2, -1))

    @in_double_precision
    def tangent_basis(self, x: Tensor) -> Tensor:
        axes = symmetric_basis(self.n, x.dtype, x.device)
        return _conjugate(_cholesky(x).unsqueeze(-3), axes)

    @in_double_precision
    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = symmetric_basis(self.n, x.dtype, x.device)
        root = _cholesky(x)
        unit = torch.eye(self.n, dtype=x.dtype, device=x.device)
        inverse = torch.linalg.solve_triangular(root, unit, upper=False)
        return _conjugate(root.unsqueeze(-3), axes), _conjugate(inverse.mT.unsqueeze(-3), axes)

    @in_double_precision
    def log_volume_element(self, x: Tensor) -> Tensor:
        r""":math:`-\tfrac{n + 1}{2} \log\det x`."""
        return -(self.n + 1) * _cholesky(x).diagonal(dim1=-2, dim2=-1).log().sum(-1)


@dataclass(frozen=True)
class LogEuclideanSPD(_PositiveDefinite):
    r"""Symmetric positive-definite matrices, flat in :math:`\log x` (Arsigny et al. 2006).

    Points have shape ``(..., n, n)``. A tangent is the rate of change of the *matrix logarithm*, a symmetric matrix with the
    plain inner product, so transport is the identity.

    Args:
        n: size of the matrices; the dimension is n (n + 1) / 2.
    """

    n: int

    @in_double_precision
    def exp(self, x: Tensor, u: Tensor) -> Tensor:
        return _symmetric(matrix_exp(matrix_log(x) + u))

    @in_double_precision
    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return matrix_log(y) - matrix_log(x)

    def transport(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return u

    def rate(self, x: Tensor, u: Tensor) -> Tensor:
        """The derivative of the matrix exponential at log x."""
        return self._rate_of_exp(x, u, invert=False)

    def from_rate(self, x: Tensor, v: Tensor) -> Tensor:
        return self._rate_of_exp(x, v, invert=True)

    def riemannian_gradient(self, x: Tensor, g: Tensor) -> Tensor:
        return self._rate_of_exp(x, g, invert=False)  # the map is its own transpose

    @in_double_precision
    def _rate_of_exp(self, x: Tensor, u: Tensor, *, invert: bool) -> Tensor:
        e, q = torch.linalg.eigh(_symmetric(x))
        slope = _divided("exp", e.log())
        inside = q.mT @ _symmetric(u) @ q
        return _conjugate(q, inside / slope if invert else inside * slope)

    def dexp_inv(self, x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return v

    def volume_gradient(self, x: Tensor, u: Tensor, y: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(v)

    def carry_noise(self, x: Tensor, motion: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.exp(x, u), motion, z

    def log_exp_volume(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.zeros_like(u[..., 0, 0])

    def tangent_basis(self, x: Tensor) -> Tensor:
        axes = symmetric_basis(self.n, x.dtype, x.device)
        return axes.expand(*x.shape[:-2], *axes.shape)

    @in_double_precision
    def frame_moves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rate of change of the matrix that belongs to each rate of change of its logarithm."""
        axes = self.tangent_basis(x)
        e, q = torch.linalg.eigh(x)
        inside = q.mT.unsqueeze(-3) @ axes @ q.unsqueeze(-3)
        return _conjugate(q.unsqueeze(-3), inside * _divided("exp", e.log()).unsqueeze(-3)), axes


def _cholesky(x: Tensor) -> Tensor:
    return torch.linalg.cholesky_ex(x)[0]  # without the check, which waits for the device


def _whiten(root: Tensor, u: Tensor) -> Tensor:
    """L^-1 u L^-T for lower-triangular L."""
    left = torch.linalg.solve_triangular(root, u, upper=False)
    return _symmetric(torch.linalg.solve_triangular(root, left.mT, upper=False))
