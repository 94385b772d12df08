"""What one worker is made of, started and asked how it stands."""

# an engine imports it on a thread, where CPython 3.11 may fail while pytest rewrites modules beside it
import serving.state.online_state  # noqa: F401
from serving.engine import Engine
from tests.serving.conftest import settings_file
from training.contract.settings import load_settings


def test_a_starting_worker_waits_for_a_store_that_refuses_no_longer_than_that(tmp_path):
    engine = Engine(load_settings(settings_file(tmp_path)), "w1", [])
    engine.wait_for_store(120.0)  # no day has written a feature store
    assert not engine.ready
    engine.close()
