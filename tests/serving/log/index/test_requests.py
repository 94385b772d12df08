from datetime import UTC, datetime

from serving.log.day_files import Place
from serving.log.index.request_index import ServedRequest

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def test_a_served_request_is_found_also_after_a_restart(make_index):
    first = make_index()
    at, places = NOON.timestamp(), [Place("a.jsonl", 0, 70), Place("a.jsonl", 71, 2**33)]
    one = ServedRequest("r1", 5, "s1", at, "champion")
    first.add([one, ServedRequest("r2", 6, "s2", at, "champion")], places)
    assert first.requests.find("r1") == (5, "s1", at, places[0])
    assert first.requests.find("r3") is None
    first.close()
    assert make_index().requests.find("r2") == (6, "s2", at, places[1])


def test_an_id_is_the_first_users_who_asked_by_it(make_index):
    one, other = make_index(), make_index()  # two workers
    assert one.claim([("mine", 5), ("mine", 6), ("yours", 6), ("mine", 5)]) == [True, False, True, True]
    assert one.requests.find("mine") is None  # it was not served yet
    assert other.claim([("yours", 5), ("yours", 6)]) == [False, True]
    one.add([ServedRequest("mine", 5, "s1", 0.0, "champion")])
    assert other.claim([("mine", 5), ("mine", 7)]) == [True, False]
    assert other.requests.find("mine").session_id == "s1"  # asked for again, it is what it was
    # one that the service made is taken, too
    one.add([ServedRequest("made", 9, "s9", 0.0, "champion")])
    assert other.claim([("made", 5)]) == [False]
