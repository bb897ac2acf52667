"""A TopK training step as one would first write it: dense, autograd, torch's Adam. What ours is held to and timed against."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae.architectures import SAE, TopKConfig
from sae.config import TrainConfig
from sae.training.optimizer import warmup_then_decay


class NaiveTopK:
    """Trains a TopK SAE by the mathematics of `Trainer`, from the same weights, with every tensor [B, F].

    FVU and AuxK (Gao et al. 2024, arXiv:2406.04093, appendix A.2), gradients tangent to the decoder's rows, clipped to
    norm 1, Adam in torch's default form, rows brought back to norm 1, tokens since each latent fired."""

    def __init__(self, sae: SAE, cfg: TrainConfig):
        assert isinstance(sae.cfg, TopKConfig)
        self.arch, self.clip_norm, self.steps_done = sae.cfg, cfg.clip_norm, 0
        self.W_enc = nn.Parameter(sae.W_enc.detach().T.clone())  # [F, D], as torch.nn.Linear has it
        self.W_dec = nn.Parameter(sae.W_dec.detach().clone())
        self.b_enc = nn.Parameter(sae.b_enc.detach().clone())
        self.b_dec = nn.Parameter(sae.b_dec.detach().clone())
        assert isinstance(cfg.lr, float)
        assert cfg.steps is not None
        assert cfg.warmup_steps is not None
        assert cfg.dead_after_tokens is not None
        self.dead_after_tokens = cfg.dead_after_tokens
        self.optimizer = torch.optim.Adam(self.parameters, lr=cfg.lr, eps=6.25e-10)
        self.lr, self.schedule = cfg.lr, warmup_then_decay(cfg.steps, cfg.warmup_steps, cfg.decay_share)
        self.silent_tokens = torch.zeros(sae.d_sae, dtype=torch.int64)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that it trains."""
        return [self.W_enc, self.W_dec, self.b_enc, self.b_dec]

    @property
    def aux_k(self) -> int:
        """Dead latents that AuxK lets explain the residual, at most."""
        return self.arch.aux_k or max(1, len(self.b_dec) // 2)

    def pre_activations(self, x: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        """Return (x - b_dec) W_enc + b_enc."""
        return F.linear(x - self.b_dec, self.W_enc, self.b_enc)

    def latents(self, u: Float[Tensor, "B F"]) -> Float[Tensor, "B F"]:
        """Return the k largest of each row, with negative ones at 0, and 0 elsewhere."""
        values, chosen = u.topk(self.arch.k, dim=1, sorted=False)
        return torch.zeros_like(u).scatter(1, chosen, values.relu())

    def auxk(
        self, u: Float[Tensor, "B F"], residual: Float[Tensor, "B D"], dead: Bool[Tensor, "F"]
    ) -> Float[Tensor, ""] | float:
        """Return the FVU of the residual as the most active dead latents reconstruct it; 0 when none is dead."""
        if not dead.any():
            return 0.0
        k = min(self.aux_k, int(dead.sum()))
        values, chosen = torch.where(dead, u.relu(), -torch.inf).topk(k, dim=1, sorted=False)
        return fvu(residual.detach(), torch.zeros_like(u).scatter(1, chosen, values) @ self.W_dec)

    def train_step(self, x: Float[Tensor, "B D"]) -> float:
        """Take one training step and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * self.schedule(self.steps_done)
        u = self.pre_activations(x)
        f = self.latents(u)
        x_hat = f @ self.W_dec + self.b_dec
        dead = self.silent_tokens >= self.dead_after_tokens
        loss = fvu(x, x_hat) + self.arch.aux_weight * self.auxk(u, x - x_hat, dead)
        self.optimizer.zero_grad()
        loss.backward()
        self._update()
        self.silent_tokens = torch.where((f != 0).any(0), 0, self.silent_tokens + len(x))
        self.steps_done += 1
        return loss.item()

    @torch.no_grad()
    def _update(self) -> None:
        assert self.W_dec.grad is not None
        along = (self.W_dec.grad * self.W_dec).sum(1, keepdim=True) / self.W_dec.square().sum(1, keepdim=True)
        self.W_dec.grad -= along * self.W_dec
        nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))


def fvu(x: Float[Tensor, "B D"], x_hat: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
    """Return the squared error over the squared distance from the batch's mean."""
    return (x_hat - x).square().sum() / (x - x.mean(0)).square().sum()
