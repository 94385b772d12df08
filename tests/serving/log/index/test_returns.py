import time

from serving.log.index.request_index import ServedRequest


def test_a_session_of_two_policies_speaks_of_neither(make_index):
    index = make_index()
    index.add(
        [
            ServedRequest("r1", 5, "s1", 0.0, "champion", "one"),
            ServedRequest("r2", 6, "s2", 0.0, "champion", "one"),
        ]
    )
    index.add([ServedRequest("r3", 5, "s1", 0.0, "champion", "two")])
    assert index.lead(60.0)
    found = index.returns.of_sessions(0.0, time.time() + 1)
    assert {key: one.sessions for key, one in found.items()} == {("champion", "one"): 1}
