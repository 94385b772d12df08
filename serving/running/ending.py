"""Processes that end with the one that started them, also when that is killed (Linux; elsewhere they stay).

``python -m serving.running.ending PROGRAM ARGUMENT…`` becomes the program, and ends so.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """SIGTERM to this process, and what it becomes by exec, when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606
