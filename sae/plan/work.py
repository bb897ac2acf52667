"""What one training step of each architecture has to do, counted: no clock, no machine."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from sae.architectures import (
    ARCHITECTURES,
    SAE,
    AdaptiveKConfig,
    ArchConfig,
    GatedConfig,
    GBAConfig,
    KronConfig,
    MatryoshkaConfig,
    MFRConfig,
    name_of,
)
from sae.kernels.autograd import BLOCK
from sae.kernels.autograd_functions import CROWDED_ENTRIES, CROWDED_SHARE

Scan = Literal["row", "batch", "above", "ands", "sort", "topk"]
GUESSED_L0 = 100.0  # latents a token where neither k nor a target says: of the order that papers report


class Choice(NamedTuple):
    """How an architecture chooses among [B, F] pre-activations."""

    scan: Scan
    passes: float = 0
    """Plain operations on all of [B, F], each into new memory; 0 where pre-activations lie in the one buffer."""


@dataclass(frozen=True)
class Work:
    """Of one step on one device."""

    encode: float
    """Floating-point operations of the dense products that encode."""
    products: float
    """Of all other dense products: gradients of a crowded code, AuxK, MFR's cosines."""
    weights: float
    """Bytes of encoder weights brought in, once for each block of rows."""
    scan: Scan
    scanned: float
    """Numbers looked through to choose."""
    picked: float
    """Entries chosen."""
    passes: float
    """Numbers of [B, F] that plain operations go through."""
    gathered: float
    """Bytes of rows read because a code names them."""
    table: float
    """Bytes of all those rows."""
    loss: float
    """Numbers of [B, D] through scaling, loss and gradient."""
    parameters: int
    """What the optimizer moves."""
    dense: int
    """Numbers in [B, F] matrices held at once, the one reused buffer included."""
    matched: int = 0
    """MFR: rows matched one to one, a problem of its own."""


class Active(NamedTuple):
    """Latents a token that take part in the reconstruction, in training."""

    number: float
    assumed: str | None
    """Where the number is from when no setting says it."""


CHOICES: dict[str, Choice] = {
    "topk": Choice("row"),
    "batchtopk": Choice("batch"),
    "abstopk": Choice("row"),
    "kron": Choice("ands"),
    "topafa": Choice("sort", 10),
    "relu": Choice("above"),
    "gated": Choice("above"),
    "jumprelu": Choice("above"),
    "matryoshka": Choice("batch"),
    "gba": Choice("above", 8),
    "mfr": Choice("topk", 5),
    "adaptivek": Choice("row"),
}


def active(cfg: ArchConfig, l0: float | None = None) -> Active:
    """How many latents a token fire: `l0` if given, else what the settings say, else what is commonly seen."""
    if l0 is not None:
        return Active(l0, None)
    if (k := getattr(cfg, "k", None)) is not None:
        return Active(k, None)
    if isinstance(cfg, GBAConfig):
        if cfg.l0 is not None:
            return Active(cfg.l0, None)
        return Active(
            cfg.expected_l0(), "latents fire below their groups' targets by as much as was measured"
        )
    if isinstance(cfg, AdaptiveKConfig):
        return Active(
            (cfg.k_min + cfg.k_max) / 2, "texts of middling complexity: halfway from k_min to k_max"
        )
    return Active(min(GUESSED_L0, cfg.d_sae), "nothing sets it: it follows from the data and --arch settings")


def skeleton(cfg: ArchConfig, d_model: int) -> SAE:
    """An SAE that has shapes and no memory: a million latents cost nothing."""
    with torch.device("meta"):
        return ARCHITECTURES[name_of(cfg)][1](d_model, cfg)


def count(cfg: ArchConfig, d_model: int, batch: int, l0: float, dead: float = 0.0, parts: int = 1) -> Work:
    """Of one step on `batch` rows, with `dead` of all latents dead, where a device has one of so many parts of the latents.

    It then has F / parts of them, of which l0 / parts fire on a row."""
    sae, choice = skeleton(cfg, d_model), _choice(cfg)
    B, D, F = batch, d_model, cfg.d_sae / parts
    peers = cfg.peers if isinstance(cfg, MFRConfig) else 1
    pairs = peers * (peers - 1) / 2
    codes = 2 if getattr(cfg, "multi_weight", 0) else 1  # Multi-TopK chooses 4 k latents beside the k
    entries, reads = B * l0 * (5 if codes == 2 else 1) / parts, peers * _reads(cfg)
    crowded = entries > CROWDED_ENTRIES and entries > CROWDED_SHARE * B * F
    products = reads * 2 * B * D * F if crowded else 0.0
    if dead and hasattr(cfg, "aux_k"):  # their pre-activations and reconstruction, each with two gradients
        products += 6 * 2 * B * D * F * dead
    if pairs:  # cosines of all their rows, and both gradients
        products += pairs * 3 * 2 * D * F**2
    blocks = 1.0 if choice.passes else max(1.0, B * F / BLOCK)
    return Work(
        encode=codes * peers * B * sae.encoder_cost().flops / parts,
        products=products,
        weights=codes * 4 * _encoder_weights(sae) / parts * blocks,
        scan=choice.scan,
        scanned=codes * peers * B * F,
        picked=peers * entries,
        passes=peers * choice.passes * B * F,
        gathered=0.0 if crowded else reads * entries * D * 4,
        table=4 * D * F,
        loss=peers * _errors(cfg) * B * D,
        parameters=round(sum(p.numel() for p in sae.parameters()) / parts),
        dense=round(_dense(choice, cfg, B * F) + B * F * crowded),
        matched=round(pairs * F),
    )


def _encoder_weights(sae: SAE) -> int:
    """Numbers in the matrices that encode; a tied encoder's is the decoder."""
    own = sum(p.numel() for name, p in sae.named_parameters() if p.dim() > 1 and name != "W_dec")
    return own or sae.W_dec.numel()


def _choice(cfg: ArchConfig) -> Choice:
    found = CHOICES[name_of(cfg)]
    if getattr(cfg, "per", "token") == "batch":
        return Choice("batch")
    if getattr(cfg, "select", "topk") == "batchtopk":
        return Choice("batch", 2)
    return found


def _reads(cfg: ArchConfig) -> int:
    """How often the rows of all entries are read: decoding, values' gradient, decoder's gradient, encoder's gradient."""
    if isinstance(cfg, KronConfig):  # a gradient for either factor
        return 5
    if isinstance(cfg, GatedConfig):  # the gate's reconstruction, which teaches no decoder
        return 6
    if isinstance(cfg, MatryoshkaConfig) and len(cfg.prefixes) > 1:  # prefixes decode each entry once more
        return 7
    return 4


def _errors(cfg: ArchConfig) -> float:
    """Errors of [B, D] that the loss is made of; those of prefixes are summed up and summed back too."""
    if isinstance(cfg, MatryoshkaConfig):
        return 1 + 1.8 * (len(cfg.prefixes) - 1)
    return 1.5 if isinstance(cfg, GatedConfig) else 1.0


def _dense(choice: Choice, cfg: ArchConfig, numbers: float) -> float:
    """Numbers held to choose from `numbers` pre-activations."""
    if isinstance(cfg, KronConfig) and choice.scan == "ands":  # factors instead of latents
        return numbers * (cfg.m + cfg.n) / (cfg.m * cfg.n)
    if choice.scan == "sort":
        return 6 * numbers  # values, places of two words each, and what is compared
    return 3 * numbers if choice.passes else min(numbers, BLOCK)
