"""A function for other processes, in a module that starts quickly."""

import time


def sleepy(items: list[float]) -> list[str]:
    """Sleep so many seconds for each."""
    for seconds in items:
        time.sleep(seconds)
    return ["done"] * len(items)
