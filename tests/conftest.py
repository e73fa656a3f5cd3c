"""What holds for every test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Tests that draw without a generator are still repeatable."""
    torch.manual_seed(0)
