"""Steering: interventions on some latents, made into an edit of what passes the SAE's hook point."""

import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.errors import ConfigError
from activations.generation import PlacedEdit
from sae.architectures import SAE
from sae.code import SparseCode
from sae.steering.interventions import (
    OVERFLOWS,
    READS_CODE,
    Calibration,
    Intervention,
    change,
    check_strength,
    displacement,
    overflow,
    targets,
)

Positions = Literal["all", "after prompt"] | tuple[int, ...]


def positions_of(text: str) -> Positions:
    """Positions as they are typed: `all`, `after prompt`, or numbers with commas between. Raises ConfigError."""
    if text in ("all", "after prompt"):
        return text
    if not re.fullmatch(r"\d{1,9}(\s*,\s*\d{1,9})*", text, re.ASCII):
        raise ConfigError(f"positions = {text[:80]!r} must be all, after prompt, or numbers such as 3,4,5")
    return tuple(int(number) for number in text.split(","))


@dataclass(frozen=True, eq=False)
class Steering:
    """What is done to the activations h at one hook point while the model runs.

    h' = h + sum of the interventions' changes (see `Intervention`), each for the same original h; then, of the
    sum, the component in the span of all projected directions is taken out, the last thing done, so that nothing
    added brings it back: with h' = q + sum_i c_i d_i, q orthogonal to every projected d_i, c_i becomes
    (1 - s_i) c_i. Without `keep_error` the sum starts from the SAE's reconstruction in place of h, so that
    h' = decode(changed code), and what the SAE does not explain is lost.

    Raises ConfigError for no or unknown latents, one named twice, positions that are none, and a strength with which
    activations overflow."""

    sae: SAE
    hook: str
    """Hook point whose activations the SAE reads, such as `Run.hook`."""
    interventions: tuple[Intervention, ...]
    calibration: Calibration
    positions: Positions = "all"
    """all: every position. after prompt: from the last token of the prompt on, whose output predicts the first new
    token. Or positions chosen by number, 0 being the first token."""
    first_token: bool = False
    """Whether position 0 (BOS, where models put their attention sink) is steered too: SAEs are not trained there."""
    keep_error: bool = True
    """Whether what the SAE does not reconstruct of h stays."""
    directions: Float[Tensor, "k D"] | None = None
    """Of a control: directions that take the place of the interventions' own (see `sae.steering.controls`)."""

    def __post_init__(self) -> None:
        latents = [intervention.latent for intervention in self.interventions]
        if not latents:
            raise ConfigError("no feature to steer is given: name at least one")
        for latent in latents:
            if latent >= self.sae.d_sae:
                raise ConfigError(f"feature {latent} does not exist: this SAE has 0 to {self.sae.d_sae - 1}")
            if latents.count(latent) > 1:
                raise ConfigError(f"feature {latent} is named {latents.count(latent)} times: once is needed")
        chosen = isinstance(self.positions, tuple)
        if not chosen and self.positions not in ("all", "after prompt"):
            raise ConfigError(
                f"positions = {self.positions!r} must be all, after prompt, or numbers of positions"
            )
        if chosen and (not self.positions or min(map(int, self.positions)) < 0):
            raise ConfigError(f"positions = {self.positions}: give at least one, counted from 0")
        for intervention, row in zip(self.interventions, self.rows, strict=True):
            targets(intervention, self.calibration, float(row.norm()))
            check_strength(intervention, self.calibration, float(row.norm()))

    @property
    def latents(self) -> list[int]:
        """Numbers of the latents, in the order of the interventions."""
        return [intervention.latent for intervention in self.interventions]

    @property
    def rows(self) -> Float[Tensor, "k D"]:
        """Decoder rows of the latents."""
        return self.sae.W_dec[self.latents].detach().float()

    @property
    def changes_nothing(self) -> bool:
        """Whether it is the identity, to the bit: every strength is its mode's neutral one and the error is kept."""
        neutral = {"add": 0, "ablate": 0, "project": 0, "scale": 1}
        return self.keep_error and all(i.strength == neutral.get(i.mode) for i in self.interventions)

    def dosed(self, dose: float) -> "Steering":
        """The same with every strength multiplied by `dose`."""
        scaled = tuple(replace(i, strength=dose * i.strength) for i in self.interventions)
        return replace(self, interventions=scaled)

    def describe(self) -> dict[str, Any]:
        """Everything but SAE and calibration, as JSON holds it."""
        positions = list(self.positions) if isinstance(self.positions, tuple) else self.positions
        return {
            "hook": self.hook,
            "interventions": [asdict(intervention) for intervention in self.interventions],
            "positions": positions,
            "first_token": self.first_token,
            "keep_error": self.keep_error,
        }

    def edits(self, n_prompt: int = 0) -> dict[str, PlacedEdit]:
        """What `LanguageModel.logits` and `generate` take, for sequences that begin with n_prompt tokens of prompt.

        Positions not steered pass unchanged, to the bit. The edit raises ConfigError when activations overflow; it does
        not know how long the sequence gets: `sae.steering.reach.check_positions` does."""

        def edit(x: Tensor, first: int = 0) -> Tensor:
            steered = self.steered(torch.arange(first, first + x.shape[1]), n_prompt).to(x.device)
            if not steered.any():
                return x
            out, chosen = x.clone(), x[:, steered]
            moved = self.apply(chosen.flatten(0, 1)).to(x)
            if not bool(moved.float().norm(dim=1).amax() <= OVERFLOWS):
                raise self._overflow(chosen)
            out[:, steered] = moved.view_as(chosen)
            return out

        return {self.hook: edit}

    def _overflow(self, x: Tensor) -> ConfigError:
        """What to say when what was made of x has numbers that the model cannot compute with."""
        if not x.isfinite().all():
            return ConfigError(
                f"what passes {self.hook} is not finite before it is steered: load the model in float32"
            )

        def reached(place: int) -> float:
            one = self.interventions[place]
            return displacement(one, self.calibration, float(self.rows[place].norm()), abs(one.strength))

        place = max(range(len(self.interventions)), key=reached)
        return overflow(self.interventions[place], self.calibration, float(self.rows[place].norm()))

    @torch.no_grad()
    def apply(self, h: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """h', whatever the position of each row; float32, on the SAE's device."""
        base, amounts = self._base_and_amounts(h)
        moved = amounts @ self.rows
        if self.directions is not None:
            instead = amounts @ self.directions.to(moved)
            tiny = torch.finfo(moved.dtype).tiny
            size = moved.norm(dim=1, keepdim=True) / instead.norm(dim=1, keepdim=True).clamp_min(tiny)
            moved = instead * size  # several directions meet at other angles than the latents' own
        return base + moved

    @torch.no_grad()
    def amounts(self, h: Float[Tensor, "B D"]) -> Float[Tensor, "B k"]:
        """How much of each latent's decoder row is added to each row, in the order of the interventions."""
        return self._base_and_amounts(h)[1]

    def _base_and_amounts(self, h: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B k"]]:
        """What each row starts from, and how much of each latent's decoder row is added to it."""
        h = h.float().to(self.sae.device)
        reads = not self.keep_error or any(i.mode in READS_CODE for i in self.interventions)
        code = self.sae.encode(h) if reads else None
        base = h if self.keep_error or code is None else self.sae.decode(code)
        return base, self._amounts(base, code)

    def _amounts(self, base: Float[Tensor, "B D"], code: SparseCode | None) -> Float[Tensor, "B k"]:
        """How much of each latent's decoder row is added to each row of `base`."""
        rows = self.rows
        amounts = base.new_zeros(len(base), len(rows))
        for place, intervention in enumerate(self.interventions):
            if intervention.mode != "project":
                f = amounts[:, place] if code is None else code.of(intervention.latent)
                units = targets(intervention, self.calibration, float(rows[place].norm()))
                amounts[:, place] = change(intervention, f, *units)
        projected = [place for place, i in enumerate(self.interventions) if i.mode == "project"]
        if projected:
            span = rows[projected]
            inverse = torch.linalg.pinv(span @ span.T, hermitian=True)
            strengths = base.new_tensor([self.interventions[place].strength for place in projected])
            amounts[:, projected] = -strengths * ((base + amounts @ rows) @ span.T @ inverse)
        return amounts

    def steered(self, positions: Tensor, n_prompt: int) -> Bool[Tensor, "T"]:
        """Which of these positions are steered, in a sequence that begins with n_prompt tokens of prompt."""
        if self.positions == "all":
            inside = torch.ones_like(positions, dtype=torch.bool)
        elif self.positions == "after prompt":
            inside = positions >= n_prompt - 1
        else:
            inside = torch.isin(positions, torch.tensor(self.positions))
        return inside & (positions > 0) | inside & self.first_token
