"""What becomes of each latent in training: when it fell silent, how often it died and how often it came back."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

NEVER = -1  # in the place of a step


class History:
    """Counts per latent, kept up with a few operations on [F] a step.

    A latent *dies* at the step that makes it silent for `dead_after_tokens` tokens, and is *revived* at the step
    in which it takes part in the reconstruction again. Steps are counted from 1, as in the log. `whole` is false
    after going on from a checkpoint that has silent_tokens alone, as older releases made them."""

    silent_tokens: Int[Tensor, "F"]
    """Tokens since it last fired; all there were if it never has."""
    times_died: Int[Tensor, "F"]
    times_revived: Int[Tensor, "F"]
    first_death: Int[Tensor, "F"]
    """Step of its first death, NEVER if it has not died."""
    last_death: Int[Tensor, "F"]

    def __init__(self, n_latents: int, dead_after_tokens: int, device: torch.device | None = None):
        self.dead_after_tokens = dead_after_tokens
        self.whole = True
        for name in History.__annotations__:
            start = NEVER if name.endswith("death") else 0
            setattr(self, name, torch.full((n_latents,), start, dtype=torch.int64, device=device))

    @property
    def dead(self) -> Bool[Tensor, "F"]:
        """Latents silent for at least `dead_after_tokens`."""
        return self.silent_tokens >= self.dead_after_tokens

    def add(self, fired: Bool[Tensor, "F"], tokens: int, step: int) -> None:
        """Take in one step: which latents took part, on how many tokens, and its number."""
        dead = self.dead
        self.silent_tokens = torch.where(fired, 0, self.silent_tokens + tokens)
        died = self.dead & ~dead
        self.times_died = self.times_died + died
        self.times_revived = self.times_revived + (dead & fired)
        self.first_death = torch.where(died & (self.first_death == NEVER), step, self.first_death)
        self.last_death = torch.where(died, step, self.last_death)

    def totals(self) -> dict[str, int]:
        """Deaths and revivals of all latents together so far: `died` - `revived` are dead. Empty unless whole."""
        if not self.whole:
            return {}
        return {"died": int(self.times_died.sum()), "revived": int(self.times_revived.sum())}

    def tensors(self) -> dict[str, Tensor]:
        """All counts by name, as they are saved; unless whole, silent_tokens alone."""
        names = [*History.__annotations__] if self.whole else ["silent_tokens"]
        return {name: getattr(self, name) for name in names}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        self.whole = History.__annotations__.keys() <= tensors.keys()
        for name, own in self.tensors().items():
            setattr(self, name, tensors[name].to(own.device))
