import time

from serving.log.index.counts import ArmCounts
from serving.log.index.request_index import ServedRequest


def test_requests_are_counted_by_arm_and_policy_over_all_workers(make_index):
    for index in (make_index(), make_index()):
        index.add(
            [
                ServedRequest(
                    f"{id(index)}a", 1, "s", 0.0, "champion", "p", failed=True, bounded=3, entries=8
                ),
                ServedRequest(f"{id(index)}b", 1, "s", 0.0, "champion", "p", slow=True, entries=8),
                ServedRequest(f"{id(index)}c", 2, "t", 0.0, "static"),
            ]
        )
    now = time.time()
    assert index.lead(60.0)
    assert index.counts.between(now - 60, now) == {
        ("champion", "p"): ArmCounts(4, 2, 2, 6, 32),
        ("static", ""): ArmCounts(2),
    }
    assert index.counts.between(now + 60, now + 120) == {}
    assert index.counts.between(now - 120, now - 60) == {}
