"""What does an exploring arm deviate by? Uniforms, drawn for each request or once for a session."""

from collections.abc import Callable
from functools import partial

import numpy as np

from training.contract.exploration import replay_generator, session_uniforms
from training.contract.log import Id
from training.contract.settings import Settings

Uniforms = Callable[[int], np.ndarray]  # k → float64[k] in [0, 1)


class Deviations:
    """``replayed`` traffic draws the same for the same request; real traffic never repeats a request's draw.

    A session's draw is the same in either: see :func:`training.contract.exploration.session_uniforms`.
    """

    def __init__(self, settings: Settings, replayed: bool) -> None:
        self._seed, self._salt = settings.seed, settings.serving.salt
        self._by_session = settings.serving.exploration.unit == "session"
        self._replayed, self._generator = replayed, np.random.default_rng()

    def of(self, epoch: int, user_id: Id, session_id: str, request_id: str) -> Uniforms:
        """Of a request; ``epoch`` is that in which its session began. Nothing is drawn until it is called."""
        if self._by_session:
            return partial(session_uniforms, self._seed, self._salt, epoch, user_id, session_id)
        if self._replayed:
            return lambda count: replay_generator(self._seed, request_id).random(count)
        return self._generator.random
