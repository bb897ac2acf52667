"""A small world in which the cause of each latent's death is known: rows, and SAEs with causes planted in them."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sae.architectures import SAE, ArchConfig, BatchTopK, JumpReLU, Matryoshka, build
from sae.diagnosis.diagnose import Trained, examine
from sae.diagnosis.sample import DeadConfig, Piece, Rows
from sae.runs.records import DeadSummary

D, F, LIVING, CONTEXT = 16, 24, 9, 8
TOKENS = LIVING + 3  # axes in the data: those that living latents read, and three that nobody else does
MEAN, OFF, FREE, BOS = 12, 13, 14, 15  # axes: of the mean, of strange text, of nothing, of the first position
LOW_BIAS, TURNED, TINY, DUPLICATE, WEAK, SPECIAL, STRANGE, HIGH = range(LIVING, LIVING + 8)  # planted latents
COPIES = list(range(LIVING + 8, LIVING + 12))  # they read what WEAK reads, more strongly
NOISE = LIVING + 12  # reads what is in no text but noise
SPARE = list(range(LIVING + 13, F))  # nothing is planted in them
TRAINED = Trained(dead_after_tokens=100, tokens=10_000)
axes = torch.eye(D)


class PlantedRows(Rows):
    """Rows of text that mix the living latents' axes, on top of a mean; special positions on an axis of their own."""

    def __init__(self, n: int = 600, signed: bool = False):
        self.cfg = DeadConfig(batch=128)
        generator = torch.Generator().manual_seed(3)
        self.tokens = torch.randint(TOKENS, (n,), generator=generator)
        second = torch.rand(n, TOKENS, generator=generator) * (
            torch.rand(n, TOKENS, generator=generator) < 0.1
        )
        code = 0.3 * second + one_hot(self.tokens, TOKENS) * (
            0.6 + 0.9 * torch.rand(n, 1, generator=generator)
        )
        if signed:
            code[:, 1] *= -1
        noise = 0.01 * torch.randn(n, D, generator=generator)
        self.x = code @ axes[:TOKENS] + 4 * axes[MEAN] + noise
        self.held_out = torch.arange(n) % 4 == 0
        self.first = (30 * axes[BOS] + 4 * axes[MEAN]).expand(5, D).clone()
        held_out = int(self.held_out.sum())
        self.n = {"train": n - held_out, "held_out": held_out, "special": len(self.first)}

    def text(self) -> Iterator[Piece]:
        """Yield all rows, a batch at a time."""
        columns = torch.arange(len(self.x)) % CONTEXT
        parts = (self.x, self.held_out, self.tokens, columns)
        yield from (
            Piece(*piece) for piece in zip(*(part.split(self.cfg.batch) for part in parts), strict=True)
        )

    def special(self) -> Tensor:
        """Return the rows at the first positions."""
        return self.first


def strange() -> dict[str, Tensor]:
    """Return off-distribution rows."""
    return {
        "random": (5 * axes[OFF] + 4 * axes[MEAN]).expand(7, D).clone(),
        "shuffled": 4 * axes[MEAN].expand(3, D),
    }


@torch.no_grad()
def planted(cfg: ArchConfig) -> SAE:
    """Return an SAE whose first latents each read one axis of the world, with a cause of death in some of the rest.

    b_dec is at half the mean, so that the mean still shows."""
    sae = build(cfg, D).requires_grad_(False).eval()
    rows = torch.zeros(F, D)
    rows[:LIVING] = axes[:LIVING]
    rows[LOW_BIAS], rows[HIGH] = axes[LIVING], axes[LIVING + 1]
    rows[TURNED] = axes[LIVING + 2] - (0.0 if sae.signed else 0.8) * axes[MEAN]
    rows[TINY] = 1e-3 * (axes[3] + axes[4])
    rows[DUPLICATE] = 0.15 * axes[5]
    for place, latent in enumerate([*COPIES, WEAK]):
        rows[latent] = (0.16 - 0.01 * place) * axes[6]
    rows[SPECIAL], rows[STRANGE] = axes[BOS], axes[OFF]
    rows[NOISE] = axes[FREE]
    sae.b_dec.copy_(2 * axes[MEAN])
    sae.W_enc.copy_(rows.T)
    sae.W_dec.copy_(torch.nn.functional.normalize(rows, dim=1))
    sae.W_dec[[WEAK, *COPIES, NOISE, *SPARE]] = axes[FREE]
    bias = torch.zeros(F)
    bias[LOW_BIAS] = 0.0 if sae.signed else -100.0
    bias[[SPECIAL, STRANGE, TINY]] = 0.0 if sae.signed else -0.1
    bias[0] = 0.0 if sae.signed else -0.2
    bias[SPARE] = 0.0 if sae.signed else -1e-3
    sae.b_enc.copy_(bias if sae.pre_bias else bias - rows @ sae.b_dec)
    if isinstance(sae, BatchTopK | Matryoshka):
        sae.threshold.fill_(0.3)
    if isinstance(sae, JumpReLU):
        sae.log_threshold.fill_(0.3).log_()
        sae.log_threshold[HIGH] = 4.0
    return sae


def diagnosed(cfg: ArchConfig, signed: bool = False) -> tuple[SAE, PlantedRows, DeadSummary, dict[int, dict]]:
    """Return the planted SAE, its rows, the summary, and the rows of the table by latent."""
    sae, rows = planted(cfg), PlantedRows(signed=signed)
    summary, table = examine(sae, rows, strange(), TRAINED)
    return sae, rows, summary, {row["latent"]: row for row in table}
