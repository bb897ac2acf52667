"""Every architecture with products in bfloat16, as training on a CPU has them where they are faster."""

import torch
from torch.testing import assert_close

from sae.kernels import products_in
from tests.sae.small import every_architecture
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
