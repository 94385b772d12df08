from datetime import UTC, datetime, timedelta

import pytest

from serving.state.features_age import FeaturesAge
from training.contract.files import write_json_atomic

UNTIL = datetime(2026, 1, 5, 16, tzinfo=UTC)


@pytest.fixture
def age(settings):
    return FeaturesAge(settings)


def test_nothing_is_stale_before_the_first_materialisation(age):
    age.look()
    assert age.until is None and not age.stale(UNTIL)


def test_features_become_stale_and_fresh_again(settings, age):
    limit = timedelta(hours=settings.serving.max_features_age_hours)
    write_json_atomic(settings.layout.materialised, {"until": UNTIL.isoformat()})
    age.look()
    assert not age.stale(UNTIL + limit) and age.stale(UNTIL + limit + timedelta(seconds=1))
    write_json_atomic(settings.layout.materialised, {"until": (UNTIL + timedelta(days=1)).isoformat()})
    age.look()
    assert not age.stale(UNTIL + limit + timedelta(seconds=1))


@pytest.mark.parametrize("content", ["{", "{}", '{"until": 5}', '{"until": "yesterday"}'])
def test_a_broken_note_leaves_what_was_known(settings, age, content):
    write_json_atomic(settings.layout.materialised, {"until": UNTIL.isoformat()})
    age.look()
    settings.layout.materialised.write_text(content)
    age.look()
    assert age.until == UNTIL
