import threading

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from serving.control.gathered import Gathered, GatheredCounter

VALUES = [-1.0, 0.0, 0.5, 0.5000001, 1.0, 7.0, 1e9]
BUCKETS = (0.0, 0.5, 1.0)


def text(metric: Histogram | Counter) -> list[str]:
    registry = CollectorRegistry()
    registry.register(metric)
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


def test_what_was_gathered_is_written_as_the_library_would_have():
    gathered, plain = (
        kind("name", "text", ["arm"], buckets=BUCKETS, registry=None) for kind in (Gathered, Histogram)
    )
    for value in VALUES:
        for arm in ("one", "two"):
            gathered.labels(arm).observe(value)
            plain.labels(arm).observe(value)
    assert text(gathered) != text(plain)
    gathered.write()
    assert text(gathered) == text(plain)
    gathered.write()
    assert text(gathered) == text(plain)
    gathered.labels("one").observe_all(VALUES)
    for value in VALUES:
        plain.labels("one").observe(value)
    gathered.write()
    assert text(gathered) == text(plain)


def test_a_gathered_count_is_the_librarys():
    gathered, plain = (kind("name", "text", ["arm"], registry=None) for kind in (GatheredCounter, Counter))
    for arm in ("one", "two", "one"):
        gathered.labels(arm).inc()
        plain.labels(arm).inc()
    assert text(gathered) != text(plain)
    for _ in range(2):
        gathered.write()
        assert text(gathered) == text(plain)


def test_nothing_is_lost_or_written_twice_by_writers_at_once():
    gathered = Gathered("at_once", "text", buckets=BUCKETS, registry=None)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            gathered.write()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20_000):
        gathered.observe(1.0)
    done.set()
    for thread in threads:
        thread.join()
    gathered.write()
    assert "at_once_count 20000.0" in text(gathered) and "at_once_sum 20000.0" in text(gathered)
