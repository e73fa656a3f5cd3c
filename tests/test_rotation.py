"""Rotation conversions against scipy and at the angles where peers lose digits."""

import itertools
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from manifoldflow.manifolds import rotation as rot

ANGLES = [0.0, 1e-8, 1e-4, 1e-2, 1.0, 3.0, math.pi - 1e-2, math.pi - 1e-4, math.pi - 1e-6, math.pi]
ORDERS = ["".join(p) for p in itertools.product("XYZ", repeat=3) if p[0] != p[1] and p[1] != p[2]]


def rotvecs(angle: float, count: int = 200) -> torch.Tensor:
    axis = torch.nn.functional.normalize(
        torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    return angle * axis


def scipy_matrix(w: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(Rotation.from_rotvec(w.numpy()).as_matrix())


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 2e-15)])
def test_conversions_agree_with_scipy_at_every_angle(angle, dtype, tolerance):
    w = rotvecs(angle)
    truth = scipy_matrix(w)
    matrix = rot.rotvec_to_matrix(w.to(dtype))
    quaternion = rot.rotvec_to_quaternion(w.to(dtype))
    for got in (
        matrix,
        rot.quaternion_to_matrix(quaternion),
        rot.rotvec_to_matrix(rot.matrix_to_rotvec(matrix)),
        rot.rotvec_to_matrix(rot.quaternion_to_rotvec(quaternion)),
        rot.quaternion_to_matrix(rot.matrix_to_quaternion(matrix)),
        rot.sixd_to_matrix(rot.matrix_to_sixd(matrix)),
    ):
        assert (got.double() - truth).abs().max() < 2 * tolerance
    if angle < math.pi - 1e-5:
        assert (rot.matrix_to_rotvec(truth.to(dtype)).double() - w).abs().max() < 3 * tolerance


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles_agree_with_scipy(order):
    matrix = scipy_matrix(rotvecs(1.7))
    angles = rot.matrix_to_euler(matrix, order)
    assert (torch.from_numpy(Rotation.from_euler(order, angles.numpy()).as_matrix()) - matrix).abs().max() < 1e-13
    assert (rot.euler_to_matrix(angles, order) - matrix).abs().max() < 1e-13


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles_at_gimbal_lock_still_give_the_rotation(order):
    middle = (0.0, math.pi) if order[0] == order[2] else (math.pi / 2, -math.pi / 2)
    angles = torch.tensor([[0.3, m, 0.4] for m in middle], dtype=torch.float64)
    matrix = rot.euler_to_matrix(angles, order)
    again = rot.matrix_to_euler(matrix, order)
    assert again[:, 2].abs().max() == 0
    assert (rot.euler_to_matrix(again, order) - matrix).abs().max() < 1e-7


def test_euler_order_is_validated():
    with pytest.raises(ValueError, match="ZYX"):
        rot.euler_to_matrix(torch.zeros(3), "XXY")


def test_quaternion_product_and_rotation_agree_with_matrices():
    a, b = rotvecs(1.0), rotvecs(2.5).flip(0)
    p, q = rot.rotvec_to_quaternion(a), rot.rotvec_to_quaternion(b)
    product = rot.quaternion_to_matrix(rot.quaternion_multiply(p, q))
    assert (product - scipy_matrix(a) @ scipy_matrix(b)).abs().max() < 1e-14
    v = torch.randn(200, 3, dtype=torch.float64)
    assert (rot.quaternion_rotate(p, v) - (scipy_matrix(a) @ v.unsqueeze(-1)).squeeze(-1)).abs().max() < 1e-14
    assert (rot.quaternion_multiply(p, rot.quaternion_conjugate(p)) - torch.tensor([1.0, 0, 0, 0])).abs().max() < 1e-15


def test_compose_without_the_matrix_unit_is_the_matrix_product():
    a, b = scipy_matrix(rotvecs(1.0)), scipy_matrix(rotvecs(2.0))

    class Elsewhere(torch.Tensor):
        device = torch.device("meta")

    assert (rot.compose(a.as_subclass(Elsewhere), b).as_subclass(torch.Tensor) - a @ b).abs().max() < 1e-15


@pytest.mark.parametrize(
    "name",
    ["rotvec_to_matrix", "rotvec_to_quaternion", "quaternion_to_rotvec", "matrix_to_rotvec", "matrix_to_quaternion"],
)
@pytest.mark.parametrize("angle", [0.0, 0.5, 3.0])
def test_conversions_pass_gradcheck(name, angle):
    w = rotvecs(angle, 3)
    start = {"rotvec": w, "quaternion": rot.rotvec_to_quaternion(w), "matrix": rot.rotvec_to_matrix(w)}[
        name.split("_to_")[0]
    ]
    assert torch.autograd.gradcheck(getattr(rot, name), start.requires_grad_(), atol=1e-5)
