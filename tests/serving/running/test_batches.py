"""Batches in their three ways: who gets which answer, who is refused, and what is told of what waits."""

import asyncio
import threading
import time

import pytest

from serving.log.day_files import LogError
from serving.running.batches import LoopBatches, ThreadBatches, ThreadThenLoopBatches, settle


def test_one_commit_serves_many_waiters():
    batches: list[list[int]] = []
    gate = threading.Event()

    def commit(batch):
        gate.wait(10)
        batches.append(batch)

    async def run():
        log = ThreadBatches("test log", commit, LogError)
        first = asyncio.ensure_future(log.add(0))
        await asyncio.sleep(0.05)  # the writer is now busy with it
        rest = [asyncio.ensure_future(log.add(number)) for number in range(1, 100)]
        await asyncio.sleep(0.05)
        assert len(log.line) == 99 and log.line.lag > 0.0 and not first.done()
        gate.set()
        await asyncio.gather(first, *rest)
        log.close()

    asyncio.run(run())
    assert batches == [[0], list(range(1, 100))]


def test_a_queue_that_never_empties_is_as_old_as_its_oldest_item():
    async def run():
        log = ThreadBatches("test log", lambda batch: time.sleep(0.01), LogError, largest=1)
        waiting = [asyncio.ensure_future(log.add(number)) for number in range(5)]
        seen = []
        for _ in range(60):
            await waiting.pop(0)
            waiting.append(asyncio.ensure_future(log.add(0)))
            await asyncio.sleep(0)
            seen.append((log.line.lag, log.line.wait))
        await asyncio.gather(*waiting)
        log.close()
        return seen

    began = time.monotonic()
    seen = asyncio.run(run())
    whole = time.monotonic() - began
    assert max(max(one) for one in seen) < whole / 2, (whole, seen)


def test_a_failed_commit_reaches_every_waiter_of_its_batch_and_no_other():
    def commit(batch):
        if "bad" in batch:
            raise OSError("disk full")

    async def run():
        log = ThreadBatches("test log", commit, LogError)
        with pytest.raises(LogError, match="the test log failed: disk full"):
            await log.add("bad")
        await log.add("good")
        log.close()
        with pytest.raises(LogError, match="closed"):
            await log.add("late")

    asyncio.run(run())


def test_a_queue_that_is_full_refuses():
    gate = threading.Event()

    async def run():
        log = ThreadBatches("test log", lambda batch: gate.wait(10) and None, LogError, capacity=2)
        waiting = [asyncio.ensure_future(log.add(0))]
        await asyncio.sleep(0.05)
        waiting += [asyncio.ensure_future(log.add(number)) for number in (1, 2)]
        await asyncio.sleep(0.05)
        with pytest.raises(LogError, match="2 items wait for the test log"):
            await log.add(3)
        gate.set()
        await asyncio.gather(*waiting)
        log.close()

    asyncio.run(run())


@pytest.fixture(params=[LoopBatches, ThreadThenLoopBatches])
def with_rest(request):
    """Either way of work and a rest on the event loop; the threads of both are noted."""
    threads: list[tuple[int, int]] = []

    def make(work, rest):
        at = []

        def noted_work(batch):
            at.append(threading.get_ident())
            return work(batch)

        def noted_rest(worked):
            threads.append((at.pop(), threading.get_ident()))
            rest(worked)

        return request.param("test", noted_work, noted_rest, LogError, largest=2)

    yield make
    loop_only = request.param is LoopBatches
    assert threads and all((one == other) is loop_only for one, other in threads)


def test_the_rest_of_a_batch_gets_every_answer_and_its_waiter(with_rest):
    make = with_rest
    batches = []

    def rest(worked):
        batches.append([(one.item, one.answer) for one in worked])
        for one in worked:
            one.waiter.future.set_result(10 * one.answer)

    async def run():
        batch = make(lambda items: [item + 1 for item in items], rest)
        answers = await asyncio.gather(*(batch.add(item) for item in range(5)))
        batch.close()
        with pytest.raises(LogError, match="the test is closed"):
            batch.add(5)
        return answers

    assert asyncio.run(run()) == [10, 20, 30, 40, 50]
    assert batches == [[(0, 1), (1, 2)], [(2, 3), (3, 4)], [(4, 5)]]


@pytest.mark.parametrize("which", ["work", "rest"])
def test_whatever_stops_a_batch_or_its_rest_reaches_its_waiters_and_no_others(with_rest, which):
    make = with_rest

    def work(items):
        if which == "work" and 0 in items:
            raise OSError("no disk")
        return items

    def rest(worked):
        if which == "rest" and any(one.item == 0 for one in worked):
            raise OSError("no disk")
        settle(worked)

    async def run():
        batch = make(work, rest)
        answers = await asyncio.gather(*(batch.add(item) for item in range(4)), return_exceptions=True)
        batch.close()
        return answers

    *failed, two, three = asyncio.run(run())
    assert [str(one) for one in failed] == ["the test failed: no disk"] * 2 and (two, three) == (2, 3)


def test_the_next_batch_waits_until_the_loop_is_done_with_the_one_before():
    under_way = []

    def work(items):
        under_way.append(len(under_way))
        return items

    def rest(worked):
        time.sleep(0.05)  # the loop is busy; the thread must not begin meanwhile
        assert len(under_way) == 1
        under_way.clear()
        settle(worked)

    async def run():
        batch = ThreadThenLoopBatches("test", work, rest, LogError, largest=1)
        answers = await asyncio.gather(*(batch.add(item) for item in range(4)))
        batch.close()
        return answers

    assert asyncio.run(run()) == [0, 1, 2, 3]
