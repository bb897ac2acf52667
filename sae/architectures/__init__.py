"""The table of architectures: a new one is a file here and a line there."""

import torch

from activations.errors import ConfigError
from sae.architectures.abstopk import AbsTopK, AbsTopKConfig
from sae.architectures.adaptivek import AdaptiveK, AdaptiveKConfig
from sae.architectures.base import SAE, ArchConfig, Loss
from sae.architectures.batchtopk import BatchTopK, BatchTopKConfig
from sae.architectures.gated import Gated, GatedConfig
from sae.architectures.gba import GBA, GBAConfig
from sae.architectures.jumprelu import JumpReLU, JumpReLUConfig
from sae.architectures.kron import KronConfig, KronSAE
from sae.architectures.matryoshka import Matryoshka, MatryoshkaConfig
from sae.architectures.mfr import MFR, MFRConfig
from sae.architectures.relu import ReLU, ReLUConfig
from sae.architectures.topafa import TopAFA, TopAFAConfig
from sae.architectures.topk import TopK, TopKConfig

ARCHITECTURES: dict[str, tuple[type[ArchConfig], type[SAE]]] = {
    "topk": (TopKConfig, TopK),
    "batchtopk": (BatchTopKConfig, BatchTopK),
    "abstopk": (AbsTopKConfig, AbsTopK),
    "kron": (KronConfig, KronSAE),
    "topafa": (TopAFAConfig, TopAFA),
    "relu": (ReLUConfig, ReLU),
    "gated": (GatedConfig, Gated),
    "jumprelu": (JumpReLUConfig, JumpReLU),
    "matryoshka": (MatryoshkaConfig, Matryoshka),
    "gba": (GBAConfig, GBA),
    "mfr": (MFRConfig, MFR),
    "adaptivek": (AdaptiveKConfig, AdaptiveK),
}

__all__ = [
    "ARCHITECTURES",
    "GBA",
    "MFR",
    "SAE",
    "AbsTopK",
    "AbsTopKConfig",
    "AdaptiveK",
    "AdaptiveKConfig",
    "ArchConfig",
    "BatchTopK",
    "BatchTopKConfig",
    "GBAConfig",
    "Gated",
    "GatedConfig",
    "JumpReLU",
    "JumpReLUConfig",
    "KronConfig",
    "KronSAE",
    "Loss",
    "MFRConfig",
    "Matryoshka",
    "MatryoshkaConfig",
    "ReLU",
    "ReLUConfig",
    "TopAFA",
    "TopAFAConfig",
    "TopK",
    "TopKConfig",
    "build",
    "name_of",
]


def name_of(cfg: ArchConfig) -> str:
    """The table's name for a configuration's architecture."""
    return next(name for name, (config, _) in ARCHITECTURES.items() if type(cfg) is config)


def build(cfg: ArchConfig, d_model: int, seed: int = 0) -> SAE:
    """An SAE of this architecture over width d_model, initialised around 0; the same for the same seed.

    Raises ConfigError when it does not fit into memory."""
    try:
        sae = ARCHITECTURES[name_of(cfg)][1](d_model, cfg)
    except (
        RuntimeError,
        MemoryError,
        OverflowError,
    ) as error:  # torch has no error of its own for this on the CPU
        size = 4 * 2 * cfg.d_sae * d_model / 1e9
        raise ConfigError(
            f"d_sae = {cfg.d_sae} over activations of width {d_model} takes {size:,.3g} GB for the weights alone, which "
            f"memory does not hold: choose fewer latents (sae plan train tells what fits)"
        ) from error
    centre = torch.zeros(d_model)
    sae.initialise(centre[None], centre, torch.Generator().manual_seed(seed))
    return sae
