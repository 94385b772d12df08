"""Arrays to and from a process in a peer's environment: npz without pickle, each behind its length.

Imported by the benchmarks and by the peers' scripts, so only numpy.
"""

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

_LENGTH = 8  # bytes


def send(stream: IO[bytes], arrays: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stream.write(len(buffer.getbuffer()).to_bytes(_LENGTH, "little"))
    stream.write(buffer.getbuffer())
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, np.ndarray] | None:
    """What :func:`send` sent, or None where the other side has ended."""
    head = stream.read(_LENGTH)
    if len(head) < _LENGTH:
        return None
    with np.load(io.BytesIO(stream.read(int.from_bytes(head, "little"))), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


class Peer:
    """A script that a peer's Python runs, which answers every message with one.

    ``about`` is its argument, as JSON. What it prints to its standard error is seen here.
    """

    def __init__(self, environment: Path, script: Path, about: Mapping[str, Any]) -> None:
        python = environment / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"{python} does not exist: run `make peers` first")
        self.process = subprocess.Popen(
            [python, script, json.dumps(about)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self, **arrays: Any) -> dict[str, np.ndarray]:
        assert self.process.stdin is not None and self.process.stdout is not None  # pipes
        send(self.process.stdin, arrays)
        answer = receive(self.process.stdout)
        if answer is None:
            raise RuntimeError(f"{self.process.args[1]} ended with {self.process.wait()}")  # type: ignore[index]
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve(answer: Any) -> None:
    """Of the script's side: answer every message on standard input until it is closed.

    What the script's libraries print goes to standard error, for standard output is the answers'.
    """
    incoming, outgoing = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr
    while (message := receive(incoming)) is not None:
        send(outgoing, answer(message))
