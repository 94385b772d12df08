"""A thread that looks at files again and again, whatever happens to them."""

import threading
from collections.abc import Callable, Sequence

import structlog

_log = structlog.get_logger("mtf.serving.following")


class Following:
    """Call every one of ``looks`` each ``seconds``, on one thread, from :meth:`start` to :meth:`stop`."""

    def __init__(self, seconds: float, looks: Sequence[Callable[[], object]]) -> None:
        self._seconds, self._looks = seconds, looks
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """Returns when the last look has ended, or after ``seconds``."""
        self._stop.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            for look in self._looks:
                try:
                    look()
                except Exception:  # the thread must outlive whatever a file can do to it
                    _log.exception("not followed")
