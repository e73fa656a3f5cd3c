"""Where the shared data lies, and a mark for tests that need it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

SHARED_DATA = Path(os.environ.get("MANIFOLDFLOW_DATA") or ROOT.parent / "shared" / "data")

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"no shared data at {SHARED_DATA}")
