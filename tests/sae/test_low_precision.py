"""Every architecture with products in bfloat16, as training on a CPU has them where they are faster."""

import pytest
import torch
from torch.testing import assert_close

from sae.architectures import build
from sae.kernels import products_in
from tests.sae.small import SMALL, D, every_architecture
from tests.sae.test_laws import rows, trained


@every_architecture
def test_products_in_low_precision_decide_what_fires_and_not_how_strongly(cfg):
    sae, x = trained(cfg)[0], rows()
    exact = sae.encode(x).dense()
    with products_in(torch.bfloat16):
        low = sae.encode(x).dense()
    both = (low != 0) & (exact != 0)
    assert both.sum() > 0.9 * ((low != 0) | (exact != 0)).sum()
    assert_close(low[both], exact[both])


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu", "batchtopk", "matryoshka", "topafa"])
def test_what_rounding_lifts_above_zero_is_not_negative_in_the_code(name):
    sae = build(SMALL[name], D)
    if name == "jumprelu":
        sae.log_threshold.data.fill_(-20.0)
    # Large parts that cancel but for a little: a rounded product has either sign.
    x = 100 * torch.randn(4000, D, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), products_in(torch.bfloat16):
        codes = sae.gate_and_magnitudes(x) if name == "gated" else (sae.training_code(x),)
    for code in codes:
        assert code.values.min() >= 0
