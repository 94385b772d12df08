"""oneDNN's products are PyTorch's up to rounding."""

import pytest
import torch
import torch.nn.functional as F

from training.policies import products
from training.policies.products import product

TORCH = (
    "2.13.0"  # whose private function is what ``products`` asks for; a new release is looked at, then named
)


def test_this_is_the_release_whose_private_function_is_known() -> None:
    assert torch.__version__.split("+")[0] == TORCH
    assert torch.backends.mkldnn.is_available() == products.ONEDNN


@pytest.mark.parametrize("outputs", [1, 7, 8, 64])
@pytest.mark.parametrize("rows", [0, 1, 256])
@pytest.mark.parametrize("relu", [False, True])
def test_a_product_is_pytorchs(rows: int, outputs: int, relu: bool) -> None:
    x, weight, bias = torch.randn(rows, 33), torch.randn(outputs, 33), torch.randn(outputs)
    expected = F.linear(x, weight, bias)
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(product(x, weight, bias, relu), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(product(x, weight), x @ weight.t(), atol=1e-4, rtol=1e-5)
    of_columns = weight.t().contiguous()  # a gradient's product takes its factors transposed
    torch.testing.assert_close(product(x, of_columns.t()), x @ weight.t(), atol=1e-4, rtol=1e-5)


def test_where_it_is_not_there_pytorchs_own_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = torch.randn(5, 33), torch.randn(16, 33), torch.randn(16)
    monkeypatch.setattr(products, "ONEDNN", False)
    assert torch.equal(product(x, weight, bias, relu=True), F.linear(x, weight, bias).relu())
