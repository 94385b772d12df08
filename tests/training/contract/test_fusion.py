"""Eq. (1), and the scaling between actions and weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.contract.errors import DataError
from training.contract.fusion import Fusion, Head, top

UNIT = st.floats(-1.0, 1.0)


@st.composite
def fusions(draw: st.DrawFn) -> Fusion:
    heads = []
    for index in range(draw(st.integers(1, 6))):
        low = draw(st.floats(-10, 10))
        high = low + draw(st.floats(0.01, 20))
        static = min(low + draw(st.floats(0, 1)) * (high - low), high)
        heads.append(Head(f"h{index}", draw(st.floats(1e-3, 2)), low, high, static))
    return Fusion(tuple(heads))


@given(fusion=fusions(), data=st.data())
def test_actions_and_weights_go_there_and_back(fusion: Fusion, data: st.DataObject) -> None:
    k = len(fusion.heads)
    action = data.draw(hnp.arrays(np.float64, (3, k), elements=UNIT))
    weights = fusion.to_weights(action)
    assert ((weights >= fusion.low - 1e-9) & (weights <= fusion.high + 1e-9)).all()
    np.testing.assert_allclose(fusion.to_action(weights), action, atol=1e-9)


@given(fusion=fusions(), data=st.data())
def test_weights_are_truncated_to_their_intervals_first(fusion: Fusion, data: st.DataObject) -> None:
    weights = data.draw(hnp.arrays(np.float64, len(fusion.heads), elements=st.floats(-1e6, 1e6)))
    action = fusion.to_action(weights)
    assert (np.abs(action) <= 1.0).all()
    clipped = np.clip(weights, fusion.low, fusion.high)
    np.testing.assert_allclose(fusion.to_weights(action), clipped, atol=1e-9)


@given(fusion=fusions())
def test_the_static_action_is_the_static_weights(fusion: Fusion) -> None:
    static = [head.static for head in fusion.heads]
    assert fusion.static_action.dtype == np.float32
    span = fusion.high - fusion.low
    assert (np.abs(fusion.to_weights(fusion.static_action) - static) <= 1e-6 * np.maximum(span, 1)).all()


def test_the_score_is_the_formula() -> None:
    fusion = Fusion((Head("a", 0.1, 0, 2, 1), Head("b", 1.0, -1, 0, -0.5)))
    predictions = np.array([[0.2, 3.0], [0.0, 0.0]])
    expected = [2 * np.log(0.3) - 0.5 * np.log(4.0), 2 * np.log(0.1)]
    np.testing.assert_allclose(fusion.score(predictions, np.array([2.0, -0.5])), expected)
    batch = fusion.score(np.stack([predictions] * 3), np.array([[2.0, -0.5]] * 3))
    np.testing.assert_allclose(batch, [expected] * 3)


def test_a_heads_missing_scores_do_not_change_the_order() -> None:
    fusion = Fusion((Head("a", 0.1, 0, 2, 1), Head("b", 1.0, 0, 1, 1, maximum=60.0)))
    matrix = fusion.matrix({"a": [0.5, 0.1]}, 2)
    np.testing.assert_array_equal(matrix, [[0.5, 0.0], [0.1, 0.0]])
    alone = fusion.score(matrix, np.array([1.0, 0.0]))
    both = fusion.score(matrix, np.array([1.0, 1.0]))
    np.testing.assert_allclose(np.diff(alone), np.diff(both))


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"c": [0.1, 0.2]}, "unknown head 'c'; the settings name a, b"),
        ({"a": [0.1]}, r"scores.a has shape \(1,\), expected \(2,\)"),
        ({"a": [0.1, 1.7]}, r"scores.a\[1\] is 1.7, expected a number in \[0, 1\]"),
        ({"a": [0.1, float("nan")]}, r"scores.a\[1\] is nan"),
        ({"a": [-0.1, 0.1]}, r"scores.a\[0\] is -0.1"),
        ({"b": [61.0, 0.1]}, r"scores.b\[0\] is 61.0, expected a number in \[0, 60\]"),
    ],
)
def test_a_wrong_score_is_named(scores: dict, message: str) -> None:
    fusion = Fusion((Head("a", 0.1, 0, 2, 1), Head("b", 1.0, 0, 1, 1, maximum=60.0)))
    with pytest.raises(DataError, match=message):
        fusion.matrix(scores, 2)


def test_the_plain_weighted_sum_is_another_form_of_the_same_weights():
    heads = (Head("a", 0.1, 0, 2, 1), Head("b", 1.0, -1, 0, -0.5))
    predictions = np.array([[[0.2, 0.5], [0.4, 0.1]]])
    weights = np.array([[1.5, -0.5]])
    np.testing.assert_allclose(Fusion(heads, "sum").score(predictions, weights), [[0.05, 0.55]])
    assert Fusion(heads) != Fusion(heads, "sum")


@given(
    rows=st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=60, max_size=60), min_size=1, max_size=3
    ),
    n=st.integers(1, 60),
    k=st.integers(1, 80),
)
def test_top_is_a_stable_sort_of_one_request_and_of_many(rows: list[list[float]], n: int, k: int) -> None:
    scores = np.array(rows)[:, :n]
    expected = [sorted(range(n), key=lambda i: (-row[i], i))[:k] for row in rows]
    assert top(scores, k).tolist() == expected
    assert [top(row, k).tolist() for row in scores] == expected
