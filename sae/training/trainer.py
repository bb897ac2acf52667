"""Training: one step, the history of each latent, and the loop that logs and asks for checkpoints. It knows no files and no command line."""

import copy
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from activations.errors import DivergedError
from sae.architectures import SAE, Loss
from sae.config import TrainConfig
from sae.kernels import SINGLE_PROCESS, SingleProcess, products_in, use_collective
from sae.training.frozen import Frozen
from sae.training.optimizer import Adam, Average, warmup_then_decay

NEVER = -1  # in the place of a step in History
INIT_ROWS = 32_768  # rows the initialisation sees (Gao et al. 2024's code)


class History:
    """Counts per latent, updated by a few operations on [F] in each step.

    A latent *dies* at the step that makes it silent for `dead_after_tokens` tokens, and is *revived* at the step
    in which it takes part in the reconstruction again. Steps are counted from 1, as in the log. `complete` is false
    after resuming from a checkpoint of an older release, which has silent_tokens alone."""

    silent_tokens: Int[Tensor, "F"]
    """Tokens since the latent last fired; all tokens so far if it never fired."""
    times_died: Int[Tensor, "F"]
    times_revived: Int[Tensor, "F"]
    first_death: Int[Tensor, "F"]
    """Step of the first death, NEVER if the latent has not died."""
    last_death: Int[Tensor, "F"]

    def __init__(self, n_latents: int, dead_after_tokens: int, device: torch.device | None = None):
        self.dead_after_tokens = dead_after_tokens
        self.complete = True
        for name in History.__annotations__:
            start = NEVER if name.endswith("death") else 0
            setattr(self, name, torch.full((n_latents,), start, dtype=torch.int64, device=device))

    @property
    def dead(self) -> Bool[Tensor, "F"]:
        """Whether each latent has been silent for at least `dead_after_tokens`."""
        return self.silent_tokens >= self.dead_after_tokens

    def add(self, fired: Bool[Tensor, "F"], tokens: int, step: int) -> None:
        """Record step number `step`, on `tokens` tokens, in which the latents `fired` took part in a reconstruction."""
        dead = self.dead
        self.silent_tokens = torch.where(fired, 0, self.silent_tokens + tokens)
        died = self.dead & ~dead
        self.times_died = self.times_died + died
        self.times_revived = self.times_revived + (dead & fired)
        self.first_death = torch.where(died & (self.first_death == NEVER), step, self.first_death)
        self.last_death = torch.where(died, step, self.last_death)

    def totals(self) -> dict[str, int]:
        """Return the deaths and revivals of all latents so far; `died` - `revived` are dead now. Empty unless complete."""
        if not self.complete:
            return {}
        return {"died": int(self.times_died.sum()), "revived": int(self.times_revived.sum())}

    def tensors(self) -> dict[str, Tensor]:
        """Return all counts by name, as they are saved; silent_tokens alone unless complete."""
        names = [*History.__annotations__] if self.complete else ["silent_tokens"]
        return {name: getattr(self, name) for name in names}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `tensors` returned."""
        self.complete = History.__annotations__.keys() <= tensors.keys()
        for name, own in self.tensors().items():
            setattr(self, name, tensors[name].to(own.device))


class Trainer:
    """One SAE in training: its optimizer, schedule and the history of its latents.

    `cfg` must be resolved; a precision that is still `auto` means float32. Activations are multiplied by `scale` before the
    SAE reads them. `ranks` are those that train the same SAE; each has a part of it, or of every batch. `held_out_rows`, raw
    activations that are the same on every rank, may be assigned before the first step; checkpoints hold them."""

    def __init__(self, sae: SAE, cfg: TrainConfig, scale: float = 1.0, ranks: SingleProcess = SINGLE_PROCESS):
        assert cfg.steps is not None
        assert isinstance(cfg.lr, int | float)
        assert cfg.warmup_steps is not None
        assert cfg.dead_after_tokens is not None
        self.sae, self.cfg, self.scale, self.ranks = sae, cfg, scale, ranks
        self.step, self.lr = 0, cfg.lr
        self.frozen = None if cfg.frozen is None else Frozen(sae, cfg.frozen)
        self.optimizer = Adam(sae, cfg.lr, cfg.clip_norm, ranks)
        self.schedule = warmup_then_decay(cfg.steps, cfg.warmup_steps, cfg.decay_share)
        self.steps = cfg.steps
        self.history = History(sae.d_sae, cfg.dead_after_tokens, sae.device)
        self.average = None if cfg.ema is None else Average(sae, cfg.ema)
        self.precision = torch.bfloat16 if cfg.precision == "bfloat16" else None
        self.held_out_rows: Float[Tensor, "n D"] | None = None

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step == self.cfg.steps

    def train_step(
        self,
        x: Float[Tensor, "B D"],
        y: Float[Tensor, "B D"],
        labels: Float[Tensor, "B"] | None = None,
        divergence: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Loss, dict[str, float]]:
        """Take one step on raw activations, with labels if there are any. Return this rank's loss, and what else to log.

        `divergence` returns the KL that reconstructions of x, in the units of x, cause in the language model. It is then
        added to the loss, multiplied by a number without gradient that makes it as large as the reconstruction error, and
        logged as `kl`. Karvonen 2025, arXiv:2503.17272.

        Raises DivergedError when the loss or its gradient is not finite; the weights then stay as they were."""
        sae, lr = self.sae, self.lr * self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        # An SAE that is trained end to end has been trained before: its warm-ups and stages are behind it.
        sae.begin_step(self.step if divergence is None else self.steps - 1, self.steps)
        dead = self.history.dead
        target = None if y is x else self._scaled(y)
        x = self._scaled(x)
        with use_collective(self.ranks), products_in(self.precision):
            loss = sae.loss(x, x if target is None else target, dead)
            if labels is not None:
                loss = loss.plus(*sae.label_loss(x, labels.to(sae.device)))
            if divergence is not None:
                kl = divergence(sae.decode(sae.training_code(x)) / self.scale)
                # The error in the units of the method's loss: its penalties keep their weight against it.
                error = loss.terms.get("squared_error", loss.terms["fvu"])
                share = error / kl.detach().clamp_min(torch.finfo(kl.dtype).tiny)
                loss = loss.plus(share * kl, {"kl": kl.detach()})
        self.optimizer.zero_grad()
        with self.optimizer.collecting():
            loss.total.backward()
        total = self.ranks.mean_over_rows(loss.total.detach())
        # Reading the loss waits for the GPU. After backward() has been queued, that costs the least.
        if not torch.isfinite(total):
            raise self._diverged("loss", total.item())
        self.ranks.combine_gradients(sae.parameters())
        norm = self.optimizer.step()
        if not math.isfinite(norm):
            raise self._diverged("gradient", norm)
        if self.frozen:
            self.frozen.after_step(sae)
        sae.after_step(self.step, self.steps)
        self.step += 1
        if self.average:
            self.average.add(sae, self.step)
        fired = self.ranks.max_over_rows(loss.fired)
        self.history.add(fired, self.ranks.rows(len(x)), self.step)
        return loss._replace(total=total, fired=fired), {"lr": lr, "grad_norm": norm, "dead": int(dead.sum())}

    def _diverged(self, what: str, value: float) -> DivergedError:
        """Return the error for a loss or gradient that is not finite. Before the first step the learning rate is not to blame."""
        message = f"the {what} is {value} at step {self.step}"
        if self.step == 0:
            scaled = "" if self.cfg.scale_inputs else ", or train with --train.scale-inputs"
            return DivergedError(
                f"{message}, before any weight has moved: the activations or the initial weights are too large or not finite; "
                f"check the store with sae store verify{scaled}"
            )
        return DivergedError(f"{message}: lower --train.lr (it is {self.cfg.lr:g})")

    def gathered(self, loss: Loss, extra: dict[str, float]) -> dict[str, float]:
        """Return what is logged of a step, over all ranks: the loss's terms, `extra`, and deaths and revivals so far."""
        terms = {name: self.ranks.mean_over_rows(term).item() for name, term in loss.terms.items()}
        counts = {"dead": int(extra["dead"]), **self.history.totals()}
        counts = {name: self.ranks.sum_over_latents(torch.tensor(n)).item() for name, n in counts.items()}
        return {**terms, **extra, **counts}

    @property
    def held_out_due(self) -> bool:
        """Whether the row of the log that is written after this step has the measures on held-out rows."""
        every = self.cfg.held_out_every
        return every > 0 and (self.finished or self.step % every < self.cfg.log_every)

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Return the FVU and L0 that the SAE has in use on `held_out_rows`, as `held_out_fvu` and `held_out_l0`.

        They are measured as `sae evaluate` does: with the code of `encode`, with `ema` applied, and around the rows' own mean.
        Every rank takes part where several share the latents. Empty with fewer than two rows, which have no variance."""
        if self.held_out_rows is None or len(self.held_out_rows) < 2:
            return {}
        sae = self.sae
        if self.average:
            sae = copy.deepcopy(sae)
            self.average.put_into(sae)
        x = self._scaled(self.held_out_rows)
        # Products in float32, whatever a training step's are in: `sae evaluate` has them.
        with use_collective(self.ranks):
            code = sae.encode(x)
            error = (sae.decode(code).double() - x.double()).square().sum()
        l0 = self.ranks.sum_over_latents(code.l0().double().mean())
        spread = (x.double() - x.double().mean(0)).square().sum()
        return {"held_out_fvu": (error / spread).item(), "held_out_l0": l0.item()}

    def _scaled(self, x: Tensor) -> Tensor:
        own = self.sae.W_dec.new_empty(x.shape)
        return own.copy_(x, non_blocking=True).mul_(self.scale)

    def folded(self) -> SAE:
        """Return a copy of the SAE as it is saved: it reads raw activations, decoder rows have norm 1, `ema` is applied."""
        sae = copy.deepcopy(self.sae)
        if self.average and self.step:
            self.average.put_into(sae)
        sae.fold_input_scale(self.scale)
        sae.fold_decoder_norms()
        return sae

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that resuming needs beside the folded SAE and `step`."""
        sae = self.sae
        # "units." marks tensors in the units of training: unfolding them from the saved SAE would round.
        tensors = {f"units.{name}": tensor.detach() for name, tensor in sae.folded_tensors().items()}
        tensors |= self.history.tensors()
        if self.average:
            tensors |= self.average.tensors(sae)
        if self.frozen:
            tensors |= self.frozen.tensors()
        if self.held_out_rows is not None:
            tensors["held_out_rows"] = self.held_out_rows
        tensors["rng"] = torch.get_rng_state()
        for name, parameter in sae.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    @torch.no_grad()
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Restore `tensors` of another trainer, whose folded SAE has been loaded into this one's."""
        self.step = step
        self.history.restore(tensors)
        torch.set_rng_state(tensors["rng"])
        self.held_out_rows = tensors.get("held_out_rows")
        for name, tensor in self.sae.folded_tensors().items():
            tensor.copy_(tensors[f"units.{name}"])
        if self.average:
            self.average.restore(self.sae, tensors)
        if self.frozen:
            self.frozen.restore(tensors)
        for name, parameter in self.sae.named_parameters():
            if f"optimizer.{name}.step" not in tensors:  # it has had no gradient yet
                continue
            state = self.optimizer.state[parameter]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                saved = tensors[f"optimizer.{name}.{key}"]
                # The parameter's own memory order, which the optimizer's pass over rows relies on.
                state[key] = (
                    saved.to(self.sae.device) if key == "step" else torch.empty_like(parameter).copy_(saved)
                )


def fit(
    trainer: Trainer,
    batches: Iterator[tuple[Any, ...]],
    *,
    log: Callable[[dict[str, float]], None],
    save: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> bool:
    """Take the steps of `fitting` without a pause. Return whether all are done."""
    for _ in fitting(trainer, batches, log=log, save=save, stop=stop, clock=clock):
        pass
    return trainer.finished


def fitting(
    trainer: Trainer,
    batches: Iterator[tuple[Any, ...]],
    *,
    log: Callable[[dict[str, float]], None],
    save: Callable[[], None],
    stop: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[None]:
    """Train until all steps are done, or `stop` is true on any rank; either way `save` ends it. Yield between two steps.

    `batches` yields the arguments of `train_step`. `log` gets a row every `log_every` steps and at the last one: step,
    tokens, seconds since the call, tokens per second since the last row, both without the pauses that the caller makes at a
    yield, on a GPU its peak memory, the loss's terms, lr, grad_norm, latents dead before the step, deaths and revivals so
    far; and FVU and L0 on held-out rows, every `held_out_every` steps and at the last one. `save` writes a checkpoint, on all
    ranks after the same step, as often as `TrainConfig.checkpoint_minutes` asks. `clock` tells the time in seconds."""
    cfg, started = trainer.cfg, clock()
    last_time, last_step = started, trainer.step
    next_save = started + cfg.seconds_to_next_checkpoint()
    while not trainer.finished:
        loss, extra = trainer.train_step(*next(batches))
        if trainer.step % cfg.log_every == 0 or trainer.finished:
            now = clock()
            speed = (trainer.step - last_step) * cfg.batch / (now - last_time)
            last_time, last_step = now, trainer.step
            place = {"step": trainer.step, "tokens": trainer.step * cfg.batch}
            pace = {"seconds": round(now - started, 3), "tokens_per_second": round(speed, 1)}
            if trainer.sae.device.type == "cuda":
                pace["gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
            held_out = trainer.held_out() if trainer.held_out_due else {}
            log({**place, **pace, "loss": loss.total.item(), **trainer.gathered(loss, extra), **held_out})
        if trainer.finished:
            break
        # The ranks' clocks differ. All continue only if each wants to, and all save only once each finds it time, so
        # that they take the same branch. Rank 0 alone writes, so its pause is the longest and sets the pace.
        wishes = torch.tensor([not stop(), clock() >= next_save], dtype=torch.int32)
        go_on, due = trainer.ranks.least(wishes).tolist()
        if not go_on:
            break
        if due:
            began = clock()
            save()
            ended = clock()
            next_save = ended + cfg.seconds_to_next_checkpoint(ended - began)
        paused = clock()
        yield
        paused = clock() - paused
        started, last_time = started + paused, last_time + paused
    save()
