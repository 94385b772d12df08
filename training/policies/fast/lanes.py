"""Two lanes: tasks of a step beside each other, each lane on its own thread and in its own cache.

PyTorch shares every operation among its threads. A step's operations are short, so the threads spend their
time meeting, and one reads from afar what the other has left: two threads made a step 1.3 times as fast as
one. Lanes that wait for each other only where a task needs what another has made bring it to 1.8 times.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from training.policies.fast import library

_LOOKING_NS, _SLEEP_S = 1_000_000, 1e-4  # how long a lane that waits looks, before it sleeps in between

Results = Callable[[str], Any]  # a task's result by its name, when it has ended
Task = Callable[[Results], Any]


class Lanes:
    """``with lanes: lanes.run({"f": f, "g": g})``: each task may ask for the results of those before it.

    Each lane takes the next task when it is free. With one PyTorch thread they run after each other: with the
    same results. Else each lane has half of PyTorch's threads, and the calling thread is the first lane.
    Neither lane has autograd.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._threads = 0  # of PyTorch, outside of the lanes
        self._runs = 0
        self._ended: dict[str, _Number] = {}  # of each task: the last run that it ended in
        self._asked = _Number()
        self._shared: SimpleQueue[_Run] = SimpleQueue()  # that the other lane was asked to share
        self._lock, self._awake = threading.Lock(), False  # the other lane

    def __enter__(self) -> "Lanes":
        self._threads = torch.get_num_threads()
        if self._threads > 1:
            torch.set_num_threads(self._threads // 2)
            self._pool = self._pool or ThreadPoolExecutor(1, "lane")
        return self

    def __exit__(self, *exception: object) -> None:
        torch.set_num_threads(self._threads)

    def run(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        """The tasks' results. When one raises, no more are begun, and those begun have ended."""
        self._runs += 1
        for name in tasks:
            if name not in self._ended:
                self._ended[name] = _Number()
        shared = _Run(self._runs, tasks, self._ended)
        if self._pool is not None and self._threads > 1:
            with self._lock:
                self._shared.put(shared)
                self._asked.set(self._runs)
                asleep, self._awake = not self._awake, True
            if asleep:
                self._pool.submit(self._other, torch.get_num_threads())
        shared.work()
        return shared.results()

    @torch.no_grad()
    def _other(self, threads: int) -> None:
        """The other lane, until it has looked for another run in vain."""
        torch.set_num_threads(threads)
        while True:
            with self._lock:
                if self._shared.empty():
                    self._awake = False
                    return
            shared = self._shared.get()
            shared.work()
            following = shared.number + 1
            del shared  # its tensors are not kept while this lane waits
            self._asked.reaches(following)


class _Run:
    """Tasks that both lanes take from."""

    def __init__(self, number: int, tasks: Mapping[str, Task], ended: Mapping[str, "_Number"]) -> None:
        self.number = number
        self._left, self._ended = deque(tasks.items()), ended
        self._results: dict[str, Any] = dict.fromkeys(tasks)
        self._error: BaseException | None = None

    def work(self) -> None:
        while True:
            try:
                name, task = self._left.popleft()
            except IndexError:
                return
            if self._error is None:
                try:
                    self._results[name] = task(self.result)
                except BaseException as error:
                    self._error = self._error or error
            self._ended[name].set(self.number)

    def result(self, name: str) -> Any:
        self._wait(name)
        if self._error is not None:
            raise self._error
        return self._results[name]

    def results(self) -> dict[str, Any]:
        """When all have ended; those of this lane have."""
        for name in self._results:
            if self._ended[name].value < self.number:
                self._wait(name)
        if self._error is not None:
            raise self._error
        return self._results

    def _wait(self, name: str) -> None:
        while not self._ended[name].reaches(self.number):
            time.sleep(_SLEEP_S)


class _Number:
    """A number that only grows, which one lane writes and the other may wait for.

    To be woken takes as long as ten operations, and a processor that has slept starts with a cold cache. So a
    lane that waits looks again and again, for a while and without the interpreter's lock.
    """

    def __init__(self) -> None:
        self._place, self.value = np.zeros((), dtype=np.int64), 0
        self._address = self._place.ctypes.data

    def set(self, value: int) -> None:
        self._place[()] = self.value = value

    def reaches(self, value: int) -> bool:
        """Whether it does so before a millisecond is over."""
        if self.value >= value or library.LIBRARY is None:
            return self.value >= value
        return bool(library.LIBRARY.reaches(self._address, value, _LOOKING_NS))
