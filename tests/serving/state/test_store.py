"""What a store that is too slow costs."""

import time
from datetime import UTC, datetime

import numpy as np

# a store imports it on a thread, where CPython 3.11 may fail while pytest rewrites modules beside it
import serving.state.online_state  # noqa: F401
from serving.state.questions import StateRequest
from serving.state.store import StateStore
from tests.serving.conftest import settings_file
from training import features
from training.contract.settings import load_settings


def test_a_local_store_that_was_too_slow_is_left_alone_for_a_second(tmp_path, monkeypatch):
    """It is read on the event loop, which it would hold up at every batch."""
    settings = load_settings(settings_file(tmp_path, state_budget_ms=100.0))
    features.apply(settings)
    failed: list[str] = []
    store = StateStore(settings, failed.append)
    store.wait_tried(60.0)
    asked = [StateRequest(5, "s", datetime.now(UTC))]

    def state() -> np.ndarray | None:
        return store.read(asked)[0]

    assert state() is not None
    reads = []
    reader = store._store._reader
    real = reader.read

    def slow(users):
        reads.append(users)
        time.sleep(0.15)
        return real(users)

    monkeypatch.setattr(reader, "read", slow)
    assert [state() for _ in range(5)] == [None] * 5
    assert len(reads) == 1 and failed == ["read"] * 5
    monkeypatch.undo()
    until = time.monotonic() + 10.0
    while state() is None and time.monotonic() < until:
        time.sleep(0.05)
    assert state() is not None and store.healthy
    store.close()
