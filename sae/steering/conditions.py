"""Conditions of steering: activations are changed only where another latent fires, or one that a monitor watches."""

import math
import re
from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from activations.errors import ConfigError
from sae.code import SparseCode

WRITTEN = re.compile(r"(\d{1,9})\s*(?:([<>])\s*(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?))?", re.ASCII)
MONITOR = "monitor:"
FORM = "a latent such as 17, a bound on its value such as 17>2.5 or 17<-1, or monitor:NAME"


@dataclass(frozen=True)
class Condition:
    """Holds at a position where `sign` times the latent's value there is above `threshold`."""

    latent: int
    sign: int = 1
    """1, or -1 for a latent that fires below 0, or that is to be small."""
    threshold: float = 0.0
    """In the latent's own units."""

    def __post_init__(self) -> None:
        if self.latent < 0:
            raise ConfigError(f"when: feature {self.latent} does not exist: features are numbered from 0")
        if self.sign not in (1, -1):
            raise ConfigError(f"when: sign = {self.sign} must be 1 or -1")
        if not math.isfinite(self.threshold):
            raise ConfigError(f"when: threshold = {self.threshold} must be a finite number")

    def holds(self, code: SparseCode) -> Bool[Tensor, "B"]:
        """Return for each row of a code whether the condition holds."""
        return self.sign * code.of(self.latent) > self.threshold


def condition_of(text: str) -> Condition | None:
    """Parse a condition as a user types it: `17` (fires above 0), `17>2.5`, `17<-1`; empty for none.

    Raises ConfigError for anything else. A monitor's name is resolved by `sae.workflows.find.condition`."""
    if not text.strip():
        return None
    found = WRITTEN.fullmatch(text.strip())
    if not found:
        raise ConfigError(f"when = {text[:80]!r} must be {FORM}")
    latent, side, bound = found.groups()
    sign = -1 if side == "<" else 1
    return Condition(int(latent), sign, sign * float(bound or 0))
