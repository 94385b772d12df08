"""The page at ``/``: what it says, that its examples run, and that nothing in it is anybody else's."""

import re
from html import unescape

import bs4
import orjson
import pytest

from serving.http.openapi import document
from serving.http.page import page
from training.contract.settings import Settings

STATUS = {
    "champion": {"version": "v7"},
    "shares": {"champion": 0.9, "static": 0.1, "random": 0.0},
    "refused": None,
    "challenger_refused": None,
    "shares_refused": None,
}
SETTINGS = Settings(
    heads=[{"name": "click", "static": 1.0}, {"name": "watch", "static": 0.5, "maximum": 3600.0}],
    signals=[{"name": "like", "column": "is_like", "weight": 0.5}],
)


def written(status=STATUS, unready=None, settings=SETTINGS) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(page(document(settings), status, unready, "http://rank:3000"), "html.parser")


def test_it_says_what_serves_and_what_is_wrong():
    text = written().text
    assert "Serves policy v7" in text and "champion 0.9, static 0.1." in text and "Not ready" not in text
    wrong = STATUS | {"champion": None, "shares_refused": "add up to <b>more</b> than 1"}
    text = written(wrong, "the store was not reached").text
    assert "no policy has been promoted yet" in text
    assert "Not ready: the store was not reached" in text
    assert "shares refused: add up to <b>more</b> than 1" in text  # as text, whatever it holds


def test_every_field_and_every_error_is_there():
    text = written().text
    for name in ("candidates.scores.watch", "events[].is_like", "shown", "not_ranked", "policy.arm"):
        assert name in text
    for status in ("400", "401", "404", "409", "413", "429", "503"):
        assert status in text
    assert "number 0 to 3600" in text


@pytest.mark.parametrize("settings", [SETTINGS, Settings()])
def test_its_examples_are_bodies_that_are_taken(settings):
    from serving.http.parser import Parser

    rank, feedback = (
        orjson.loads(re.search(r"-d '(.*)'", unescape(pre.text), re.DOTALL)[1])
        for pre in written(settings=settings).find_all("pre")
    )
    ranked = Parser(settings).rank(orjson.dumps(rank))
    fed = Parser(settings).feedback(orjson.dumps(feedback))
    assert fed.request_id == ranked.request_id
    assert {event["item_id"] for event in fed.events} <= set(ranked.items.tolist())


def test_the_error_it_shows_is_one_that_is_given():
    from serving.http.parser import Parser
    from training.contract.errors import MtfError

    found = written()
    [told] = [code.text for code in found.find_all("code") if "expected" in code.text][:1]
    rank = orjson.loads(re.search(r"-d '(.*)'", unescape(found.find("pre").text), re.DOTALL)[1])
    rank["candidates"]["scores"]["click"][0] = -1.0
    with pytest.raises(MtfError) as refused:
        Parser(SETTINGS).rank(orjson.dumps(rank))
    assert orjson.loads(told)["error"] == str(refused.value)


def test_it_has_no_script_and_no_address_but_its_own():
    found = written()
    assert not found.find_all(["script", "link", "img", "iframe"])
    assert {link["href"] for link in found.find_all("a")} == {"/docs.json", "/status", "/metrics", "/readyz"}
    assert set(re.findall(r"https?://[^/\s]+", str(found))) == {"http://rank:3000"}
