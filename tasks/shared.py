"""The old place of :mod:`manifoldflow.tasks.common.files`, for one version."""

from manifoldflow.tasks.common.files import FOLDER_VARIABLE, find_shared, write_json

__all__ = ["FOLDER_VARIABLE", "find_shared", "write_json"]
