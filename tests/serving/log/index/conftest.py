"""Both backends of the index: the same tests hold of the file and of Redis."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis

from serving.log.index.request_index import RequestIndex
from serving.log.index.shared import SharedIndex

MakeIndex = Callable[..., RequestIndex]


@pytest.fixture(params=["file", "redis"])
def make_index(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MakeIndex]:
    """An index of the test's; called again, that of another worker or replica, or after a restart."""
    made, numbers = [], count()
    if request.param == "redis":
        server = redis.Redis(port=request.getfixturevalue("redis_port"), protocol=2)
        server.flushall()

    def make(gap_minutes: float = 30, **options: Any) -> RequestIndex:
        if request.param == "file":
            made.append(RequestIndex(tmp_path / "requests.sqlite", gap_minutes, **options))
        else:
            copy = tmp_path / f"guardrail.{next(numbers)}.sqlite"
            made.append(SharedIndex(server, copy, gap_minutes, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()
