"""What are a user's features at an instant? Their registry, a day's materialisation, reads, and parity.

Point in time: profile and history rows reach the online store when their day is materialised, at the
local midnight that ends it. A request on day D is therefore answered with what the days before D gave:
histories stamped up to D's midnight (which is when the last of them became usable), profiles changed
before it. :func:`historical` reads them as of that midnight, and the session as of the request itself,
because feedback moves it at once. Until the night's run is done, and when a day's log is late, the store is
not that far: a decision says up to when it was (``features_until``), and is then read as of that.

Feast takes seconds to import, so each function imports it when it is called.
"""

from training.features.materialising import materialise
from training.features.parity import parity
from training.features.point_in_time import historical, offline_states
from training.features.registry import EMPTY_DAY, apply

__all__ = ["EMPTY_DAY", "apply", "historical", "materialise", "offline_states", "parity"]
