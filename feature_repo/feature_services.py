"""One service per state specification: the features that a state of that version is assembled from."""

from feast import FeatureService

from feature_repo import features
from training.contract.settings import Settings
from training.contract.state import session_columns


def state(settings: Settings) -> FeatureService:
    """``state_<version>``; a changed specification is a new service, and the old one stays."""
    *batch, session = features.views(settings)
    sums = session_columns(settings.signal_names, settings.head_names)
    names = [*sums, "sess_session_id", "sess_last_ts"]
    return FeatureService(
        name=f"state_{settings.state_spec.version}",
        features=[*batch, session[names]],
        description="profile, history and session features of one state specification",
    )
