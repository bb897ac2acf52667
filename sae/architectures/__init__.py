"""The table of architectures. A new one is a file in this folder and a line here, or an entry point of an installed package.

A package adds an architecture under the group `sae.architectures`, as NAME = "package.module:Class" with a subclass of SAE."""

from typing import Any

# isort: off
# One line per architecture: it joins the table and can be imported from here. The order is that of `sae train --help`.
from sae.architectures.base import SAE as SAE, ArchConfig as ArchConfig, Loss as Loss
from sae.architectures.topk import TopK as TopK, TopKConfig as TopKConfig
from sae.architectures.batchtopk import BatchTopK as BatchTopK, BatchTopKConfig as BatchTopKConfig
from sae.architectures.abstopk import AbsTopK as AbsTopK, AbsTopKConfig as AbsTopKConfig
from sae.architectures.kron import KronConfig as KronConfig, KronSAE as KronSAE
from sae.architectures.topafa import TopAFA as TopAFA, TopAFAConfig as TopAFAConfig
from sae.architectures.relu import ReLU as ReLU, ReLUConfig as ReLUConfig
from sae.architectures.gated import Gated as Gated, GatedConfig as GatedConfig
from sae.architectures.jumprelu import JumpReLU as JumpReLU, JumpReLUConfig as JumpReLUConfig
from sae.architectures.matryoshka import Matryoshka as Matryoshka, MatryoshkaConfig as MatryoshkaConfig
from sae.architectures.gba import GBA as GBA, GBAConfig as GBAConfig
from sae.architectures.mfr import MFR as MFR, MFRConfig as MFRConfig
from sae.architectures.adaptivek import AdaptiveK as AdaptiveK, AdaptiveKConfig as AdaptiveKConfig

# isort: on
from sae.plugins import Plugins

GROUP = "sae.architectures"
BUILT_IN: dict[str, type[SAE]] = {
    thing.config.name: thing
    for thing in [*globals().values()]
    if isinstance(thing, type) and issubclass(thing, SAE) and thing is not SAE
}


def problem(name: str, thing: Any) -> str | None:
    """Return what keeps a package's class from being an architecture of this name, None if nothing does."""
    if not (isinstance(thing, type) and issubclass(thing, SAE)):
        return "is not a subclass of sae.SAE"
    config = getattr(thing, "config", None)
    if not (isinstance(config, type) and issubclass(config, ArchConfig)):
        return "has no `config`, a subclass of sae.architectures.ArchConfig"
    if lacking := [fact for fact in ("name", "rule") if not getattr(config, fact, None)]:
        return f"has a configuration, {config.__name__}, without {' and '.join(lacking)}"
    if config.name != name:
        return f"calls itself {config.name!r}"
    return None


ARCHITECTURES = Plugins[type[SAE]](GROUP, BUILT_IN, problem)
"""Every architecture's class by name."""


def name_of(cfg: ArchConfig) -> str:
    """Return the table's name for a configuration's architecture."""
    return cfg.name


def build(cfg: ArchConfig, d_model: int, seed: int = 0) -> SAE:
    """Return an SAE of this architecture over width d_model, initialised around 0; the same for the same seed.

    Raises ConfigError when it does not fit into memory."""
    return ARCHITECTURES[cfg.name](d_model, cfg, seed=seed)
