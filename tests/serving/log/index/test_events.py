import time

from serving.log.index.events import KnownEvents, RequestEvents
from serving.log.index.request_index import ServedRequest
from serving.log.index.returns import ArmReturns


def event(item: int, **values: int) -> dict[str, int]:
    return {"item_id": item, **values}


def test_feedback_sent_again_replaces_and_rewards_by_the_difference(make_index):
    index = make_index(reward=lambda e: float(e.get("is_click", 0)))
    index.add([ServedRequest("r1", 5, "s1", 0.0, "static")])
    one, two, worse = event(1, is_click=1), event(2, is_click=1), event(1, is_click=0)
    assert index.events.add([RequestEvents("r1", "s1", {1: one, 2: two})]) == [KnownEvents([], [one, two])]
    assert index.events.add([RequestEvents("r1", "s1", {1: one})]) == [KnownEvents([one, two], [one, two])]
    [known] = index.events.add([RequestEvents("r1", "s1", {1: worse})])
    assert known.before == [one, two] and sorted(known.now, key=lambda e: e["item_id"]) == [worse, two]
    now = time.time()
    assert index.lead(60.0)
    [(key, found)] = index.returns.of_sessions(0.0, now + 1).items()
    assert key == ("static", "") and found == ArmReturns(1, 1.0, 1.0, found.first)
    # what the store did not take still has to move the state
    index.events.not_moved("r1", [1])
    [known] = index.events.add([RequestEvents("r1", "s1", {1: worse})])
    assert known.before == [two] and len(known.now) == 2


def test_what_is_said_to_be_shown_adds_up(make_index):
    index = make_index()

    def shown(items, **events):
        [known] = index.events.add([RequestEvents("r1", "s1", events, items)])
        return known.shown_before, known.shown_now

    assert shown(None) == (None, None)
    assert shown([3, 1]) == (None, {1, 3})
    assert shown(None) == ({1, 3}, {1, 3})
    assert shown([2]) == ({1, 3}, {1, 2, 3})
    # what the store did not take still has to move the state
    index.events.not_moved("r1", [], frozenset({1, 3}))
    assert shown([]) == ({1, 3}, {1, 2, 3})
    index.events.not_moved("r1", [], None)
    assert shown([]) == (None, {1, 2, 3})
