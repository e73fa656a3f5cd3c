r"""Maps of unit quaternions that commute with the sign, f(-q) = -f(q), so that they are maps of rotations.

The Möbius map of a sphere, :math:`m_w(q) = \frac{1-|w|^2}{|q-w|^2}(q-w) - w` with :math:`|w| < 1`, does not know that q and
-q are the same rotation. The **double Möbius** map (Köhler et al. 2023) is the average of it and its antipode, put back on the
sphere. Written out it is a matrix and a normalisation:

.. math::
    f_w(q) = \frac{m_w(q) - m_w(-q)}{|\cdot|} = \frac{A q}{|A q|}, \qquad A = (1 + |w|^2) I - 2 w w^\top

with eigenvalues :math:`1-|w|^2` along w and :math:`1+|w|^2` across. So the inverse is :math:`A^{-1} q / |A^{-1} q|`, and as for
any matrix on :math:`S^3` the volume factor is :math:`|\det A| / |A q|^4`. Two consequences: layers with constant w compose to one
matrix (the density of one is an angular central Gaussian), so w must depend on something that stays; and nothing is
lost by taking any invertible matrix (:func:`projective`), which in the gnomonic chart around the identity, v = q_xyz / q_w,
is an affine map when its first row is (1, 0, 0, 0).
"""

import torch
from torch import Tensor

from manifoldflow.numerics import dot

SLACK = 0.95
"""Largest |w|: the map cannot become singular."""


def into_ball(free: Tensor, slack: float = SLACK) -> Tensor:
    """Free vectors ``(..., d)`` into the ball of radius ``slack``: :math:`s\\, v / (1 + |v|)`."""
    return slack * free / (1 + torch.sqrt((free * free).sum(-1, keepdim=True) + 1e-12))


def double_moebius(q: Tensor, w: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The double Möbius map of a sphere, ``q`` and ``w`` ``(..., d)`` (quaternions: d = 4), and its log-determinant ``(...)``.

    Args:
        q: unit vectors.
        w: vectors shorter than 1; zero is the identity.
        inverse: the inverse map.
    """
    squared = dot(w, w)
    along = dot(q, w)
    if inverse:
        # (a I - 2 w w')^-1 = (I + 2 w w' / (a - 2 |w|^2)) / a, and the factor 1 / a leaves with the norm
        image = q + (2 * along / (1 - squared)) * w
        log_eigenvalue = torch.log1p(squared) - torch.log1p(-squared)  # of w, the others are 1
    else:
        image = (1 + squared) * q - 2 * along * w
        image = image / (1 + squared)
        log_eigenvalue = torch.log1p(-squared) - torch.log1p(squared)
    norm = torch.sqrt((image * image).sum(-1, keepdim=True))
    return image / norm, (log_eigenvalue - q.shape[-1] * norm.log()).squeeze(-1)


def projective(q: Tensor, lower: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """:math:`q \\mapsto L q / |L q|` for a lower triangular L with a positive diagonal, and its log-determinant ``(...)``.

    Args:
        q: unit vectors ``(..., d)``.
        lower: ``(..., d, d)``; what stands above the diagonal is not read.
        inverse: the inverse map.
    """
    log_det = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    if inverse:
        image, log_det = torch.linalg.solve_triangular(lower, q.unsqueeze(-1), upper=False).squeeze(-1), -log_det
    else:
        image = (lower.tril() * q.unsqueeze(-2)).sum(-1)
    norm = torch.sqrt((image * image).sum(-1, keepdim=True))
    return image / norm, log_det - q.shape[-1] * norm.log().squeeze(-1)
