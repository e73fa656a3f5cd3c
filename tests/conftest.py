"""Where the shared data lies, and a mark for tests that need it."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no shared data at {SHARED_DATA}")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Tests that draw without a generator are still repeatable."""
    torch.manual_seed(0)
