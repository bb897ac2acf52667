"""What is done to one latent, and in which unit: its own observed maximum, or the size of the activations."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import ConfigError
from sae.features.store import FeatureStore

Mode = Literal["add", "set", "clamp", "scale", "ablate", "project"]
Unit = Literal["max", "norm"]
USEFUL = (
    1 / torch.finfo(torch.float32).eps
)  # of a move's length to the activation's: there nothing is left of it
OVERFLOWS = 1e16  # norm beyond which later layers, which square activations and multiply them by weights, leave float32
READS_CODE = ("set", "clamp", "scale", "ablate")  # modes that depend on the latent's value


@dataclass(frozen=True)
class Intervention:
    """One change of what passes the hook point, h, by way of one latent.

    f is the latent's value for h, d its decoder row (of norm 1 in a saved SAE), s the strength, u the unit:

    add      h + s u d                      in its direction, whatever it is at
    set      h + (s u - f) d                as if its value were s u
    clamp    h + (clip(f) - f) d            as if its value were at most s u in size
    scale    h + (s f - f) d                as if its value were s times what it is
    ablate   h - s f d                      as if it were silent (s = 1)
    project  h - s P h                      without the component of h along d (s = 1), P = d d^T / |d|^2

    With strength 0 add, ablate and project, and with strength 1 scale, change nothing, to the bit."""

    latent: int
    """Its number in the SAE."""
    mode: Mode = "add"
    """What is done, as above."""
    strength: float = 1.0
    """s, in units for add, set and clamp; a bare factor for the others. Signed, but for clamp."""
    unit: Unit = "max"
    """max: u is the largest value of the sign of s that the latent had on the corpus, or of the other sign
    where it never had that one. norm: u is the root mean square norm of the activations at the hook point, so
    that s is the share of it by which h moves."""

    def __post_init__(self) -> None:
        if self.latent < 0:
            raise ConfigError(f"feature {self.latent}: numbers begin at 0")
        for name, kind in (("mode", Mode), ("unit", Unit)):
            if getattr(self, name) not in get_args(kind):
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} must be one of {', '.join(get_args(kind))}"
                )
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength = {self.strength} must be a finite number")
        if self.mode == "clamp" and self.strength < 0:
            raise ConfigError(
                f"strength = {self.strength}: clamp limits the size of a value, give at least 0"
            )

    @property
    def has_unit(self) -> bool:
        """Whether its strength is in units, not a bare factor."""
        return self.mode in ("add", "set", "clamp")


@dataclass(frozen=True)
class Calibration:
    """How strong each latent gets on the corpus, and how large activations are: what strengths are measured in."""

    highest: Float[Tensor, "F"] = field(repr=False)
    """Largest value of each latent; 0 where it has none above 0."""
    lowest: Float[Tensor, "F"] = field(repr=False)
    """Size of its most negative value; 0 where it has none below 0."""
    norm: float
    """Root mean square norm of the activations."""
    peaks: Mapping[int, list[int]] = field(repr=False)
    """Token ids a latent is known by, those at the peaks of its strongest examples; absent where unknown."""

    @classmethod
    def of(cls, features: FeatureStore) -> "Calibration":
        """The calibration that a run's features hold."""
        high, low = (
            torch.tensor([value or 0.0 for value in features.table[name].to_pylist()])
            for name in ("max", "min")
        )
        ids = {name: token for token, name in reversed([*enumerate(features.vocabulary)])}
        listed = enumerate(features.table["peak_tokens"].to_pylist())
        peaks = {latent: sorted({ids[text] for text in texts if text in ids}) for latent, texts in listed}
        return cls(high.clamp_min(0), (-low).clamp_min(0), features.about["unit"], peaks)

    def extreme(self, latent: int, sign: float) -> float:
        """Size of the latent's largest value of that sign, or of the other where it has none of it; 0 if silent."""
        high, low = float(self.highest[latent]), float(self.lowest[latent])
        return (high or low) if sign >= 0 else (low or high)

    def largest(self, latent: int) -> float:
        """Size of the latent's largest value of either sign; 0 where it never fired."""
        return max(self.extreme(latent, 1), self.extreme(latent, -1))

    def living(self) -> list[int]:
        """Latents that fired on the corpus."""
        return torch.maximum(self.highest, self.lowest).nonzero()[:, 0].tolist()


def targets(intervention: Intervention, calibration: Calibration, row_norm: float) -> tuple[float, float]:
    """u for a positive and for a negative value, in the latent's own units (h moves by `row_norm` times as far).

    Raises ConfigError when the strength is in multiples of a maximum the latent does not have, and when its decoder
    row is zero."""
    if not row_norm:
        raise ConfigError(
            f"feature {intervention.latent} has a decoder row of zeros: nothing it does moves the activations"
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
    """What to say of a strength with which activations overflow, with the largest that is useful.

    That is where the move is so long that float32 rounds away what the model had there: a larger one has the same
    direction and changes nothing but the risk."""
    one = displacement(intervention, calibration, row_norm, 1.0)
    largest = USEFUL * calibration.norm / max(one, torch.finfo(torch.float32).tiny)
    return ConfigError(
        f"feature {intervention.latent}: {intervention.mode} with strength {intervention.strength:g} makes the activations "
        f"overflow; the largest strength that is useful is about {largest:.2g}, where nothing is left of what the model had"
    )


def check_strength(intervention: Intervention, calibration: Calibration, row_norm: float) -> None:
    """Raise ConfigError when the intervention moves activations further than the layers behind can compute with."""
    if not displacement(intervention, calibration, row_norm, abs(intervention.strength)) <= OVERFLOWS:
        raise overflow(intervention, calibration, row_norm)


def displacement(
    intervention: Intervention, calibration: Calibration, row_norm: float, strength: float
) -> float:
    """How far an intervention of this strength moves an activation at most, on text like the corpus.

    A clamp never makes a value larger, so that it can have any strength."""
    if intervention.mode == "clamp":
        return 0.0
    if intervention.has_unit:
        return strength * max(targets(intervention, calibration, row_norm)) * row_norm
    largest = calibration.largest(intervention.latent) * row_norm
    return strength * (calibration.norm if intervention.mode == "project" else largest or calibration.norm)


def change(
    intervention: Intervention, f: Float[Tensor, "B"], above: float, below: float
) -> Float[Tensor, "B"]:
    """What is added to the latent's value f, for every mode but project; `above` and `below` are u by sign."""
    s = intervention.strength
    u = above if s >= 0 else below
    match intervention.mode:
        case "add":
            return torch.full_like(f, s * u)
        case "set":
            return s * u - f
        case "clamp":
            most = torch.finfo(f.dtype).max  # a bound beyond it is none
            return f.clamp(-min(s * below, most), min(s * above, most)) - f
        case "scale":
            return s * f - f
        case "ablate":
            return -s * f
    raise AssertionError(intervention.mode)
