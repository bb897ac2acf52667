"""A forecast of disk, memory and time by their parts, and the counted work of a training step, which knows no machine."""

from dataclasses import dataclass, field

import torch

from sae.architectures import ARCHITECTURES, SAE, ArchConfig, name_of
from sae.architectures.config import ExpectedL0, Scan, TrainingCost
from sae.kernels.autograd import BLOCK
from sae.kernels.autograd_functions import CROWDED_ENTRIES, CROWDED_SHARE


@dataclass(frozen=True)
class Work:
    """Operations, bytes and numbers that one training step processes on one device."""

    encode: float
    """Floating-point operations of the dense products that encode."""
    products: float
    """Operations of all other dense products: gradients of a crowded code, AuxK, MFR's cosines."""
    weights: float
    """Bytes of encoder weights read from memory, once for each block of rows."""
    scan: Scan
    scanned: float
    """Numbers searched to select entries."""
    picked: float
    """Entries selected."""
    passes: float
    """Numbers of [B, F] matrices that elementwise operations process."""
    gathered: float
    """Bytes of the rows read at a code's entries."""
    table: float
    """Bytes of all latents' rows, from which those are read."""
    loss: float
    """Numbers of [B, D] that go through scaling, the loss and its gradient."""
    parameters: int
    """Parameters that the optimizer updates."""
    dense: int
    """Numbers in [B, F] matrices held at once, including the one reused buffer."""
    matched: int = 0
    """Rows matched one to one, by MFR; their time is not proportional to this number."""


def active(cfg: ArchConfig, l0: float | None = None) -> ExpectedL0:
    """Return how many latents fire per token: `l0` if given, else what the architecture expects of its settings."""
    return cfg.expected_l0() if l0 is None else ExpectedL0(l0)


def skeleton(cfg: ArchConfig, d_model: int) -> SAE:
    """Return an SAE on torch's meta device: it has shapes but no memory, so that a million latents cost nothing."""
    with torch.device("meta"):
        return ARCHITECTURES[name_of(cfg)](d_model, cfg, seed=None)


def count(
    cfg: ArchConfig,
    d_model: int,
    batch: int,
    l0: float,
    dead: float = 0.0,
    parts: int = 1,
    block: int = BLOCK,
) -> Work:
    """Count the work of one step on `batch` rows when a share `dead` of the latents is dead.

    `block` is the size of the buffer of pre-activations. With several `parts`, a device has F / parts of the latents, of which l0 / parts fire on a row."""
    sae, cost = skeleton(cfg, d_model), cfg.training_cost()
    B, D, F, N = batch, d_model, cfg.d_sae / parts, cost.dictionaries
    entries, reads = cost.entries * B * l0 / parts, N * cost.reads
    crowded = entries > CROWDED_ENTRIES and entries > CROWDED_SHARE * B * F
    products = reads * 2 * B * D * F if crowded else 0.0
    if dead and cfg.revives_dead:  # dead latents' pre-activations and reconstruction, each with two gradients
        products += 6 * 2 * B * D * F * dead
    # Cosines between all rows of two matched dictionaries, and both gradients
    products += cost.matched_pairs * 3 * 2 * D * F**2
    blocks = 1.0 if cost.passes else max(1.0, B * F / block)
    return Work(
        encode=cost.codes * N * B * sae.encoder_cost().flops / parts,
        products=products,
        weights=cost.codes * 4 * _encoder_weights(sae) / parts * blocks,
        scan=cost.scan,
        scanned=cost.codes * N * B * F,
        picked=N * entries,
        passes=N * cost.passes * B * F,
        gathered=0.0 if crowded else reads * entries * D * 4,
        table=4 * D * F,
        loss=N * cost.errors * B * D,
        parameters=round(sum(p.numel() for p in sae.parameters()) / parts),
        dense=round(_dense(cost, B * F, block) + B * F * crowded),
        matched=round(cost.matched_pairs * F),
    )


def _encoder_weights(sae: SAE) -> int:
    """Return the size of the encoder's matrices; a tied encoder uses the decoder."""
    own = sum(p.numel() for name, p in sae.named_parameters() if p.dim() > 1 and name != "W_dec")
    return own or sae.W_dec.numel()


def _dense(cost: TrainingCost, numbers: float, block: int) -> float:
    """Return how many numbers are held in memory to select from `numbers` pre-activations."""
    return min(numbers, block) if cost.held is None else cost.held * numbers


@dataclass(frozen=True)
class Forecast:
    """The predicted disk, memory and time of a job, in bytes and seconds, by part in the order in which they are shown."""

    what: str
    """The job in one line."""
    disk: dict[str, float]
    memory: dict[str, float]
    seconds: dict[str, float]
    resources: dict[str, str]
    """The limiting resource of each part of the time: `compute`, `memory bandwidth`, `disk` or `network`."""
    facts: dict[str, str] = field(default_factory=dict)
    """Further facts, such as the shuffle window."""
    notes: tuple[str, ...] = ()
    """Assumptions and caveats."""
    refusals: tuple[str, ...] = ()
    """Why the job does not fit here, and what would make it fit."""

    @property
    def limit(self) -> str:
        """The resource that most of the time is spent on, or the one there is too little of."""
        if self.refusals:
            return self.refusals[0].split(":")[0]
        by_resource: dict[str, float] = {}
        for part, seconds in self.seconds.items():
            by_resource[self.resources[part]] = by_resource.get(self.resources[part], 0.0) + seconds
        limit = max(by_resource, key=lambda name: by_resource[name])
        part = max((p for p in self.seconds if self.resources[p] == limit), key=lambda p: self.seconds[p])
        share = by_resource[limit] / (sum(self.seconds.values()) or 1.0)
        return f"{limit} ({share:.0%} of the time, most of it: {part})"


def total(parts: dict[str, float]) -> float:
    """Return the sum of all parts."""
    return sum(parts.values())


def duration(seconds: float) -> str:
    """Return a time as text, such as 10 min."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:,.1f} days"
