"""Which codec reads a body?"""

from serving.http.binary_bodies import BinaryBodies
from serving.http.checks import Checks
from serving.http.json_bodies import JsonBodies
from serving.http.requests import BINARY, JSON, FeedbackRequest, RankRequest
from serving.http.schema import Bodies
from training.contract.settings import Settings


class Parser:
    """Reads bodies against one set of settings. Every fault is a :class:`RequestError`."""

    def __init__(self, settings: Settings) -> None:
        bodies, checks = Bodies(settings), Checks(settings)
        self.json = JsonBodies(settings, bodies, checks)
        self._rank = {JSON: self.json.rank, BINARY: BinaryBodies(settings, bodies, checks).rank}

    def rank(self, body: bytes, media_type: str = JSON) -> RankRequest:
        return self._rank[media_type](body)

    def feedback(self, body: bytes) -> FeedbackRequest:
        return self.json.feedback(body)
