"""Every architecture of the table, small: what the laws are tried on. One without a line here is tried with its `small`."""

import pytest

from sae.architectures import (
    ARCHITECTURES,
    AbsTopKConfig,
    AdaptiveKConfig,
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    GBAConfig,
    JumpReLUConfig,
    KronConfig,
    MatryoshkaConfig,
    MFRConfig,
    ReLUConfig,
    TopAFAConfig,
    TopKConfig,
    build,
    name_of,
)

D, F = 8, 24
SMALL: dict[str, ArchConfig] = {
    "topk": TopKConfig(d_sae=F, k=3),
    "topk-multi": TopKConfig(d_sae=F, k=3, multi_weight=1 / 8),
    "batchtopk": BatchTopKConfig(d_sae=F, k=3),
    "abstopk": AbsTopKConfig(d_sae=F, k=3),
    "abstopk-batch": AbsTopKConfig(d_sae=F, k=3, per="batch"),
    "kron": KronConfig(d_sae=F, k=3),
    "topafa": TopAFAConfig(d_sae=F),
    "relu": ReLUConfig(d_sae=F, l1_weight=0.05),
    "gated": GatedConfig(d_sae=F, l1_weight=0.05),
    "jumprelu": JumpReLUConfig(d_sae=F),
    "jumprelu-tanh": JumpReLUConfig(d_sae=F, loss_form="tanh", sparsity_weight=D / 1000),
    "matryoshka": MatryoshkaConfig(d_sae=F, k=3, prefixes=(0.25, 0.5, 1.0)),
    "gba": GBAConfig(d_sae=F, groups=3, l0=4, update_rows=5 * 64),
    "gba-untied": GBAConfig(d_sae=F, groups=3, l0=2, tied=False, update_rows=5 * 64),
    "mfr": MFRConfig(d_sae=F, k=5),
    "adaptivek": AdaptiveKConfig(d_sae=F, k_min=1, k_max=6),
}
SMALL |= {
    name: sae.config(**sae.config.small(F, 3))
    for name, sae in ARCHITECTURES.items()
    if name not in {name_of(cfg) for cfg in SMALL.values()}
}


def architectures(
    *having: str, unit_norm: bool | None = None, pre_bias: bool | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test with `cfg`: all architectures, or those with a setting, or with decoders of a kind,
    or those that take b_dec off x, or do not."""
    chosen = [
        pytest.param(cfg, id=name)
        for name, cfg in SMALL.items()
        if all(hasattr(cfg, field) for field in having)
        and unit_norm in (None, build(cfg, D).unit_norm_decoder)
        and pre_bias in (None, build(cfg, D).pre_bias)
    ]
    return pytest.mark.parametrize("cfg", chosen)


every_architecture = architectures()
