"""Every architecture of the table, small: what the laws are tried on. A new architecture adds its line."""

import pytest

from sae.architectures import ARCHITECTURES, AdaptiveKConfig, ArchConfig, BatchTopKConfig, TopKConfig, name_of

D, F = 8, 24
SMALL: dict[str, ArchConfig] = {
    "topk": TopKConfig(d_sae=F, k=3),
    "batchtopk": BatchTopKConfig(d_sae=F, k=3),
    "adaptivek": AdaptiveKConfig(d_sae=F, k_min=1, k_max=6),
}


def architectures(*having: str, unit_norm: bool | None = None) -> pytest.MarkDecorator:
    """Parametrise a test with `cfg`: all architectures, or those with a setting, or with decoders of a kind."""
    chosen = [
        SMALL[name]
        for name, (config, sae) in ARCHITECTURES.items()
        if all(hasattr(SMALL[name], field) for field in having) and unit_norm in (None, sae.unit_norm_decoder)
    ]
    return pytest.mark.parametrize("cfg", chosen, ids=name_of)


every_architecture = architectures()
