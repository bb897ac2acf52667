"""Matryoshka: BatchTopK whose first latents must also reconstruct alone, so that general features are not absorbed.

Bussmann, Nabeshima, Karvonen, Nanda 2025, "Learning Multi-Level Features with Matryoshka Sparse
Autoencoders", arXiv:2503.17547."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.errors import ConfigError
from sae import kernels, losses
from sae.architectures.base import SAE, Loss
from sae.architectures.batchtopk import BatchTopK, BatchTopKConfig
from sae.architectures.config import ArchConfig, ExpectedL0, Selects, TrainingCost
from sae.architectures.shared import check_k, check_threshold_rate, follow_smallest, reconstruction_loss
from sae.code import SparseCode, offsets_of


@dataclass(frozen=True)
class MatryoshkaConfig(ArchConfig):
    """Matryoshka: nested dictionaries in one, BatchTopK over all, against features absorbing each other."""

    name = "matryoshka"
    rule = "it keeps what is above a threshold"
    revives_dead = True

    advice = (
        "As batchtopk, at about .7 of its speed. The first of the default prefixes holds a sixteenth of the "
        "latents: it needs some hundred to hold general features."
    )

    k: float = 32
    """Latents kept per token on average, of the whole dictionary; B * k is rounded down."""
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Ends of the nested dictionaries, as shares of d_sae counted from the first latent: rising, and the last is 1.
    These are not the sizes of the groups between them: sizes 1/16 1/16 1/8 1/4 1/2 are prefixes 1/16 1/8 1/4 1/2 1."""
    aux_k: int | None = None
    """Dead latents that AuxK lets explain the residual; half the activation width when left out."""
    aux_weight: float = 1 / 32
    """Weight of AuxK, against the sum over the prefixes."""
    threshold_rate: float = 0.01
    """Weight of each batch's smallest kept value in the running threshold of inference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_k(self.k, self)
        check_threshold_rate(self.threshold_rate)
        rising = all(a < b for a, b in pairwise((0, *self.ends)))
        if not rising or self.prefixes[-1:] != (1.0,):
            cumulative = tuple(accumulate(self.prefixes))
            hint = (
                f"; as sizes of groups they would be prefixes {cumulative}"
                if cumulative[-1:] == (1.0,)
                else ""
            )
            raise ConfigError(
                f"prefixes = {self.prefixes} must rise to 1, each by a latent or more of d_sae = {self.d_sae}{hint}"
            )

    def selects(self) -> Selects:
        """Return above one threshold."""
        return Selects.ABOVE_ONE_THRESHOLD

    def expected_l0(self) -> ExpectedL0:
        """Return k."""
        return ExpectedL0(self.k)

    def training_cost(self) -> TrainingCost:
        """Return one selection among the batch; each prefix decodes the entries once more and has an error of its own.

        The errors of prefixes are summed up, and summed back for their gradients."""
        more = len(self.prefixes) - 1
        return TrainingCost("batch", reads=7 if more else 4, errors=1 + 1.8 * more)

    @property
    def ends(self) -> tuple[int, ...]:
        """The prefixes in latents: prefix g is latents 0 ... ends[g] - 1."""
        return tuple(round(share * self.d_sae) for share in self.prefixes)


@final
class Matryoshka(SAE):
    """One BatchTopK code over all latents; each prefix of the dictionary reconstructs from it, with the same b_dec.

    y_hat_m = z[:, :m] W_dec[:m] + b_dec. In use it is a BatchTopK, threshold included; with one prefix in training too."""

    cfg: MatryoshkaConfig
    config = MatryoshkaConfig
    in_activation_units = (*SAE.in_activation_units, "threshold")
    threshold: Float[Tensor, ""]

    def make_rule(self, d_model: int) -> None:
        """Create the running threshold."""
        self.register_buffer("threshold", torch.zeros(()))

    def _encode(self, x: Float[Tensor, "B D"]) -> SparseCode:
        return self.pre_activations(x).above(self.threshold)

    def thresholds(self) -> Float[Tensor, "F"]:
        """Return one threshold for all latents."""
        return self.threshold.expand(self.d_sae)

    def simpler(self) -> BatchTopK:
        """Return the BatchTopK that it is in use: prefixes matter in training alone."""
        cfg = BatchTopKConfig(self.d_sae, self.cfg.k, threshold_rate=self.cfg.threshold_rate)
        return BatchTopK.from_tensors(cfg, self.state_dict())

    def training_code(self, x: Float[Tensor, "B D"]) -> SparseCode:
        """Return the batch's floor(B k) largest pre-activations, with negative ones set to zero."""
        return self.pre_activations(x).largest_of_batch(self.cfg.k).relu()

    def loss(self, x: Float[Tensor, "B D"], y: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]) -> Loss:
        """Return the sum over the prefixes of the prefix's FVU plus aux_weight * AuxK of the whole dictionary.

        Prefixes have equal weights and no gradient is stopped. In training mode the threshold follows the code. The logged
        `fvu` is the whole dictionary's."""
        code = self.training_code(x)
        if self.training:
            follow_smallest(self.threshold, code.values, self.cfg.threshold_rate)
        whole = reconstruction_loss(self, x, y, dead, code, self.cfg)
        shorter = self.reconstructions(code)[:-1]
        terms = {
            f"fvu_{end}": losses.fvu(y, y_hat) for end, y_hat in zip(self.cfg.ends, shorter, strict=False)
        }
        total = whole.total + sum(terms.values())
        return Loss(total, whole.terms | {name: term.detach() for name, term in terms.items()}, whole.fired)

    def reconstructions(self, code: SparseCode) -> list[Float[Tensor, "B D"]]:
        """Return the reconstruction from each prefix, the shortest first; the last is the whole dictionary's."""
        groups = len(self.cfg.ends)
        ends = torch.tensor(self.cfg.ends, device=code.indices.device)
        place = torch.bucketize(code.indices, ends, right=True) * code.n_rows + code.rows()
        order = place.argsort(stable=True)
        # Each row of this code is one row of the batch restricted to one group of latents, so that one decode does all groups.
        offsets = offsets_of(torch.bincount(place, minlength=groups * code.n_rows))
        parts = SparseCode(code.values[order], code.indices[order], offsets, code.n_latents)
        each = kernels.decode(parts, self.W_dec).view(groups, code.n_rows, -1).unbind()
        # torch.cumsum, and its gradient above all, take several times as long along the first axis.
        return list(accumulate(each[1:], torch.add, initial=each[0] + self.b_dec))
