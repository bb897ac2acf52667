"""The history of each latent in training: when it last fired, how often it died and how often it was revived."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NEVER = -1  # in the place of a step


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
