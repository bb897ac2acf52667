"""One intervention on one latent, and the units of its strength: the latent's observed maximum or the activations' norm."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import ConfigError
from sae.features.feature import FeatureStore

Mode = Literal["add", "set", "clamp", "scale", "ablate", "project"]
Unit = Literal["max", "norm"]
# Largest useful ratio of displacement to activation norm. At 1 / eps the sum rounds the activation away entirely, so a
# longer displacement gives the same direction.
USEFUL = 1 / torch.finfo(torch.float32).eps
# Largest norm that the layers behind can compute with. They square activations (norms) and multiply them by weights, so
# the limit lies a little below the square root of float32's maximum, 1.8e19.
OVERFLOWS = 1e16
READS_CODE = ("set", "clamp", "scale", "ablate")
"""Modes that depend on the latent's value."""


@dataclass(frozen=True)
class Intervention:
    """One change of the activation h at the hook point, made through one latent.

    f is the latent's value for h, d its decoder row (of norm 1 in a saved SAE), s the strength, u the unit:

    add      h + s u d                      move along d, whatever the latent's value is
    set      h + (s u - f) d                as if the latent's value were s u
    clamp    h + (clip(f) - f) d            as if the size of the latent's value were at most s u
    scale    h + (s f - f) d                as if the latent's value were s f
    ablate   h - s f d                      as if the latent were silent (s = 1)
    project  h - s P h                      remove the component of h along d (s = 1), P = d d^T / |d|^2

    add, ablate and project with strength 0, and scale with strength 1, leave h unchanged to the bit."""

    latent: int
    """The latent's number in the SAE, from 0."""
    mode: Mode = "add"
    """The change of h, as in the table above."""
    strength: float = 1.0
    """s: in units for add, set and clamp, a bare factor for the others. Signed, except for clamp."""
    unit: Unit = "max"
    """max: u is the latent's largest value on the corpus of the sign of s, or of the other sign where it never had that
    one. norm: u is the root mean square norm of the activations at the hook point, so that s is the share of that norm
    by which h moves."""

    def __post_init__(self) -> None:
        if self.latent < 0:
            raise ConfigError(f"feature {self.latent} does not exist: features are numbered from 0")
        for name, kind in (("mode", Mode), ("unit", Unit)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} must be one of {', '.join(get_args(kind))}"
                )
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength = {self.strength} must be a finite number")
        if self.mode == "clamp" and self.strength < 0:
            raise ConfigError(
                f"strength = {self.strength}: clamp limits the size of a value, so it must be at least 0"
            )

    @property
    def has_unit(self) -> bool:
        """Whether the strength counts units and is not a bare factor."""
        return self.mode in ("add", "set", "clamp")


@dataclass(frozen=True)
class Calibration:
    """The units of strengths: how strongly each latent fires on the corpus, and how large the activations are."""

    highest: Float[Tensor, "F"] = field(repr=False)
    """Each latent's largest value; 0 where it was never positive."""
    lowest: Float[Tensor, "F"] = field(repr=False)
    """Size of each latent's most negative value; 0 where it was never negative."""
    norm: float
    """Root mean square norm of the activations at the hook point."""
    peaks: Mapping[int, list[int]] = field(repr=False)
    """Latent -> ids of the tokens at the peaks of its strongest examples. Latents without known peaks are absent."""

    @classmethod
    def of(cls, features: FeatureStore) -> "Calibration":
        """Read the calibration from a run's features."""
        high, low = (
            torch.tensor([value or 0.0 for value in features.table[name].to_pylist()])
            for name in ("max", "min")
        )
        # several ids may share a text; reversed, so that the first of them is kept
        ids = {name: token for token, name in reversed([*enumerate(features.vocabulary)])}
        listed = enumerate(features.table["peak_tokens"].to_pylist())
        peaks = {latent: sorted({ids[text] for text in texts if text in ids}) for latent, texts in listed}
        return cls(high.clamp_min(0), (-low).clamp_min(0), features.record.unit, peaks)

    def extreme(self, latent: int, sign: float) -> float:
        """Return the size of the latent's largest value of that sign, or of the other sign where it never had that one.

        0 for a latent that never fired."""
        high, low = float(self.highest[latent]), float(self.lowest[latent])
        return (high or low) if sign >= 0 else (low or high)

    def largest(self, latent: int) -> float:
        """Return the size of the latent's largest value of either sign; 0 where it never fired."""
        return max(self.extreme(latent, 1), self.extreme(latent, -1))

    def living(self) -> list[int]:
        """Return the latents that fired on the corpus."""
        return torch.maximum(self.highest, self.lowest).nonzero()[:, 0].tolist()


def targets(intervention: Intervention, calibration: Calibration, row_norm: float) -> tuple[float, float]:
    """Return the unit u for positive and for negative values, in the latent's own units.

    h moves `row_norm` times as far as the latent's value. Raises ConfigError when the strength counts multiples of a
    maximum that the latent does not have, and when its decoder row is zero."""
    if not row_norm:
        raise ConfigError(
            f"feature {intervention.latent} has a decoder row of zeros: steering it cannot move the activations"
        )
    if not intervention.has_unit:
        return 1.0, 1.0
    if intervention.unit == "norm":
        return calibration.norm / row_norm, calibration.norm / row_norm
    latent = intervention.latent
    if not calibration.largest(latent):
        raise ConfigError(
            f"feature {latent} never fired on the text its features were collected on, so it has no maximum: "
            f"choose another, or give its strength as a share of the activations' norm (unit norm)"
        )
    return calibration.extreme(latent, 1), calibration.extreme(latent, -1)


def overflow(intervention: Intervention, calibration: Calibration, row_norm: float) -> ConfigError:
    """Return the error for a strength at which activations overflow; it names the largest useful strength.

    At that strength the displacement is so long that float32 rounds the model's own activation away. A larger strength
    gives the same direction and only adds the risk of overflow."""
    per_strength = displacement(intervention, calibration, row_norm, 1.0)
    largest = USEFUL * calibration.norm / max(per_strength, torch.finfo(torch.float32).tiny)
    return ConfigError(
        f"feature {intervention.latent}: {intervention.mode} with strength {intervention.strength:g} makes the activations "
        f"overflow; the largest useful strength is about {largest:.2g}, at which nothing is left of the model's own activation"
    )


def check_strength(intervention: Intervention, calibration: Calibration, row_norm: float) -> None:
    """Raise ConfigError when the intervention moves activations further than the layers behind can compute with."""
    # `not <=` and not `>`: a NaN displacement must be refused too
    if not displacement(intervention, calibration, row_norm, abs(intervention.strength)) <= OVERFLOWS:
        raise overflow(intervention, calibration, row_norm)


def displacement(
    intervention: Intervention, calibration: Calibration, row_norm: float, strength: float
) -> float:
    """Return how far an intervention of this strength moves an activation at most, on text like the corpus.

    For clamp this is 0: it never makes a value larger, so any strength is safe."""
    if intervention.mode == "clamp":
        return 0.0
    if intervention.has_unit:
        return strength * max(targets(intervention, calibration, row_norm)) * row_norm
    # scale and ablate move h by a multiple of f d. A latent that never fired has no maximum to bound f with, and f d may
    # then be as long as an activation.
    largest = calibration.largest(intervention.latent) * row_norm
    return strength * (calibration.norm if intervention.mode == "project" else largest or calibration.norm)


def change(
    intervention: Intervention, f: Float[Tensor, "B"], above: float, below: float
) -> Float[Tensor, "B"]:
    """Return what each mode except project adds to the latent's value f.

    `above` and `below` are the unit u for positive and for negative values."""
    s = intervention.strength
    u = above if s >= 0 else below
    match intervention.mode:
        case "add":
            return torch.full_like(f, s * u)
        case "set":
            return s * u - f
        case "clamp":
            most = torch.finfo(f.dtype).max  # limits nothing; a larger bound would not convert to f's type
            return f.clamp(-min(s * below, most), min(s * above, most)) - f
        case "scale":
            return s * f - f
        case "ablate":
            return -s * f
    raise AssertionError(intervention.mode)
