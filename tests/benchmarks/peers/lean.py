"""(b) A bare BentoML endpoint with BentoML's own costs taken off: takes the same body, returns k ids.

No state, no policy, no log: static weights by eq. (1). ``bentoml serve`` on this module.
"""

from typing import Any

import bentoml
from pydantic import BaseModel

from tests.benchmarks.peers.floor import top_by_static_weights


class Ranking(BaseModel):
    items: list[int]


@bentoml.service(
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
)
class Lean:
    @bentoml.api
    async def rank(self, user_id: int, candidates: dict[str, Any], k: int = 6) -> Ranking:
        return Ranking(items=top_by_static_weights(candidates["item_id"], candidates["scores"], k))
