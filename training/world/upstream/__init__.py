"""What would an upstream model predict? A reference (PLE) for logs without any, trained on past days only.

It ranks nothing itself: it fills the ``p_<head>`` columns of landed KuaiRand days, and its response
is what the ``kuairand`` build of the simulated world is made of.
"""

from training.world.upstream.daily import predict_days
from training.world.upstream.export import export_world
from training.world.upstream.model import UpstreamModel

__all__ = ["UpstreamModel", "export_world", "predict_days"]
