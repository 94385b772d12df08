"""The least that ranking a body takes once it is parsed: eq. (1) with static weights, and the best k."""

from collections.abc import Mapping, Sequence

import numpy as np

from training.contract.settings import load_settings

_fusion = load_settings().fusion
_weights = np.array([head.static for head in _fusion.heads])


def top_by_static_weights(items: Sequence[int], scores: Mapping[str, Sequence[float]], k: int) -> list[int]:
    predictions = np.array([scores[name] for name in _fusion.names]).T
    fused = _fusion.score(predictions, _weights)
    return [items[place] for place in np.argsort(-fused, kind="stable")[:k]]
