"""Steering: turn interventions on chosen latents into an edit of the activations at the SAE's hook point."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.errors import ConfigError
from activations.generation import PlacedEdit
from sae.architectures import SAE
from sae.code import SparseCode
from sae.steering.conditions import Condition
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
    """Parse positions as a user types them: `all`, `after prompt`, or numbers separated by commas.

    Raises ConfigError for anything else."""
    if text in ("all", "after prompt"):
        return text
    if not re.fullmatch(r"\d{1,9}(\s*,\s*\d{1,9})*", text, re.ASCII):
        raise ConfigError(f"positions = {text[:80]!r} must be all, after prompt, or numbers such as 3,4,5")
    return tuple(int(number) for number in text.split(","))


@dataclass(frozen=True, eq=False)
class Steering:
    """Change the activations h at one hook point while the model runs.

    h' = h + the sum of the interventions' changes (see `Intervention`), each computed from the same original h. Then the
    component of h' in the span of all projected directions is removed. This comes last, so that nothing that was added
    brings it back: with h' = q + sum_i c_i d_i and q orthogonal to every projected d_i, c_i becomes (1 - s_i) c_i.
    Without `keep_error` the sum starts from the SAE's reconstruction instead of h, so that h' = decode(changed code) and
    the reconstruction error is lost.

    Raises ConfigError when no latent is given, one does not exist or is named twice, positions are invalid, or activations
    overflow at a strength."""

    sae: SAE
    hook: str
    """Hook point whose activations the SAE reads, such as `Run.hook`."""
    interventions: tuple[Intervention, ...]
    calibration: Calibration
    positions: Positions = "all"
    """all: every position. after prompt: from the prompt's last token on, whose output predicts the first new token. A
    tuple: these positions, where 0 is the first token."""
    first_token: bool = False
    """Whether position 0 is steered too. It holds BOS, where models put their attention sink and SAEs are not trained."""
    keep_error: bool = True
    """Whether h keeps the reconstruction error, the part that the SAE does not reconstruct."""
    when: Condition | None = None
    """Where activations are changed at all: at positions where this holds for the code of h, or everywhere. Other positions
    pass unchanged, to the bit."""
    directions: Float[Tensor, "k D"] | None = None
    """Directions of a control, which replace the latents' decoder rows (see `sae.steering.sweep`)."""

    def __post_init__(self) -> None:
        latents = [intervention.latent for intervention in self.interventions]
        if not latents:
            raise ConfigError("no feature to steer: name at least one")
        for latent in latents:
            if latent >= self.sae.d_sae:
                raise ConfigError(f"feature {latent} does not exist: this SAE has 0 to {self.sae.d_sae - 1}")
            if latents.count(latent) > 1:
                raise ConfigError(f"feature {latent} is named {latents.count(latent)} times: name it once")
        if self.when and self.when.latent >= self.sae.d_sae:
            raise ConfigError(
                f"when: feature {self.when.latent} does not exist: this SAE has 0 to {self.sae.d_sae - 1}"
            )
        by_number = isinstance(self.positions, tuple)
        if not by_number and self.positions not in ("all", "after prompt"):
            raise ConfigError(
                f"positions = {self.positions!r} must be all, after prompt, or numbers of positions"
            )
        if by_number and (not self.positions or min(map(int, self.positions)) < 0):
            raise ConfigError(f"positions = {self.positions}: give at least one, counted from 0")
        for intervention, row in zip(self.interventions, self.rows, strict=True):
            targets(intervention, self.calibration, float(row.norm()))
            check_strength(intervention, self.calibration, float(row.norm()))

    @property
    def latents(self) -> list[int]:
        """The steered latents, in the order of the interventions."""
        return [intervention.latent for intervention in self.interventions]

    @property
    def rows(self) -> Float[Tensor, "k D"]:
        """The decoder rows of the steered latents, float32."""
        return self.sae.W_dec[self.latents].detach().float()

    @property
    def changes_nothing(self) -> bool:
        """Whether this is the identity to the bit: every strength is neutral for its mode and the error is kept."""
        neutral = {"add": 0, "ablate": 0, "project": 0, "scale": 1}
        return self.keep_error and all(i.strength == neutral.get(i.mode) for i in self.interventions)

    def dosed(self, dose: float) -> "Steering":
        """Return this steering with every strength multiplied by `dose`."""
        scaled = tuple(replace(i, strength=dose * i.strength) for i in self.interventions)
        return replace(self, interventions=scaled)

    def describe(self) -> dict[str, object]:
        """Return every setting except SAE and calibration as JSON content."""
        positions = list(self.positions) if isinstance(self.positions, tuple) else self.positions
        return {
            "hook": self.hook,
            "interventions": [asdict(intervention) for intervention in self.interventions],
            "positions": positions,
            "first_token": self.first_token,
            "keep_error": self.keep_error,
            "when": self.when and asdict(self.when),
        }

    def edits(self, n_prompt: int = 0) -> dict[str, PlacedEdit]:
        """Return the edits for `LanguageModel.logits` and `generate`, for sequences whose first n_prompt tokens are the prompt.

        Positions that are not steered pass unchanged, to the bit. The edit raises ConfigError when activations overflow. It
        cannot tell whether any steered position will occur: `check_positions` does."""

        def edit(x: Tensor, first: int = 0) -> Tensor:
            steered = self.steered(torch.arange(first, first + x.shape[1]), n_prompt).to(x.device)
            if not steered.any():
                return x
            out, chosen = x.clone(), x[:, steered]
            rows = chosen.flatten(0, 1)
            moved = rows.clone()
            if (holds := self.holds(rows).to(x.device)).any():
                moved[holds] = self._changed(rows[holds]).to(x)
            # Checked after the cast, because float16 overflows where float32 does not. `not <=` and not `>`, because NaN
            # must be refused too.
            if not bool(moved.float().norm(dim=1).amax() <= OVERFLOWS):
                raise self._overflow(chosen)
            out[:, steered] = moved.view_as(chosen)
            return out

        return {self.hook: edit}

    def _overflow(self, x: Tensor) -> ConfigError:
        """Return the error for activations x that overflow once they are steered.

        It blames the intervention with the longest displacement, or the model where x itself is not finite."""
        if not x.isfinite().all():
            return ConfigError(
                f"the activations at {self.hook} are not finite before they are steered: load the model in float32"
            )

        def length(index: int) -> float:
            intervention = self.interventions[index]
            row_norm = float(self.rows[index].norm())
            return displacement(intervention, self.calibration, row_norm, abs(intervention.strength))

        longest = max(range(len(self.interventions)), key=length)
        return overflow(self.interventions[longest], self.calibration, float(self.rows[longest].norm()))

    @torch.no_grad()
    def apply(self, h: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return h' for every row of h, whatever its position; float32, on the SAE's device."""
        changed, h = self._changed(h), h.float().to(self.sae.device)
        return changed if self.when is None else torch.where(self.holds(h)[:, None], changed, h)

    @torch.no_grad()
    def holds(self, h: Float[Tensor, "B D"]) -> Bool[Tensor, "B"]:
        """Return for each row of h whether the condition holds, on the SAE's device; everywhere where there is none."""
        h = h.float().to(self.sae.device)
        if self.when is None:
            return torch.ones(len(h), dtype=torch.bool, device=h.device)
        return self.when.holds(self.sae.encode(h))

    @torch.no_grad()
    def _changed(self, h: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Return h' for every row of h, whether the condition holds or not."""
        base, amounts = self._base_and_amounts(h)
        moved = amounts @ self.rows
        if self.directions is not None:
            # A control must move every activation exactly as far as the latents would. Equal norms of single directions
            # do not suffice: several directions meet at other angles than the decoder rows, so their sum has another norm.
            control = amounts @ self.directions.to(moved)
            tiny = torch.finfo(moved.dtype).tiny
            ratio = moved.norm(dim=1, keepdim=True) / control.norm(dim=1, keepdim=True).clamp_min(tiny)
            moved = control * ratio
        return base + moved

    @torch.no_grad()
    def amounts(self, h: Float[Tensor, "B D"]) -> Float[Tensor, "B k"]:
        """Return how much of each latent's decoder row is added to each row of h, in the order of the interventions."""
        return self._base_and_amounts(h)[1] * self.holds(h)[:, None]

    def _base_and_amounts(self, h: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B k"]]:
        """Return what each row starts from, and how much of each latent's decoder row is added to it."""
        h = h.float().to(self.sae.device)
        # encoding costs far more than the rest, and add and project do not depend on the code
        reads = not self.keep_error or any(i.mode in READS_CODE for i in self.interventions)
        code = self.sae.encode(h) if reads else None
        base = h if self.keep_error or code is None else self.sae.decode(code)
        return base, self._amounts(base, code)

    def _amounts(self, base: Float[Tensor, "B D"], code: SparseCode | None) -> Float[Tensor, "B k"]:
        """Return how much of each latent's decoder row is added to each row of `base`."""
        rows = self.rows
        amounts = base.new_zeros(len(base), len(rows))
        for index, intervention in enumerate(self.interventions):
            if intervention.mode != "project":
                # without a code the mode is add, which uses only the shape of f
                f = amounts[:, index] if code is None else code.of(intervention.latent)
                units = targets(intervention, self.calibration, float(rows[index].norm()))
                amounts[:, index] = change(intervention, f, *units)
        projected = [index for index, i in enumerate(self.interventions) if i.mode == "project"]
        if projected:
            # Decoder rows are not orthogonal, so removing one component after the other would put part of the first back.
            # c solves c (span span^T) = h' span^T, the least-squares coefficients of h' in the span of all projected rows.
            # The pseudoinverse serves rows that are linearly dependent too.
            span = rows[projected]
            inverse = torch.linalg.pinv(span @ span.T, hermitian=True)
            strengths = base.new_tensor([self.interventions[index].strength for index in projected])
            amounts[:, projected] = -strengths * ((base + amounts @ rows) @ span.T @ inverse)
        return amounts

    def steered(self, positions: Tensor, n_prompt: int) -> Bool[Tensor, "T"]:
        """Return which of these positions are steered in a sequence whose first n_prompt tokens are the prompt."""
        if self.positions == "all":
            inside = torch.ones_like(positions, dtype=torch.bool)
        elif self.positions == "after prompt":
            inside = positions >= n_prompt - 1
        else:
            inside = torch.isin(positions, torch.tensor(self.positions))
        return inside & (positions > 0) | inside & self.first_token


def check_positions(steering: Steering, n_prompt: int, n_new: int) -> None:
    """Raise ConfigError when a prompt followed by n_new tokens has no position that is steered."""
    # The model never reads the last new token while it writes, so that token's position does not count.
    last = n_prompt + n_new - 2
    if steering.steered(torch.arange(last + 1), n_prompt).any():
        return
    positions = steering.positions
    listed = ", ".join(map(str, positions[:8])) if isinstance(positions, tuple) else positions
    only_first = last == 0 or positions == (0,)
    advice = "steer the first token too (--first-token)" if only_first else "choose others"
    raise ConfigError(
        f"positions = {listed}: none of them is steered; a prompt of {n_prompt} tokens and {n_new} new ones have positions "
        f"0 to {last}{'' if steering.first_token else ', of which 0 is left out'}: {advice}, or ask for more tokens"
    )


def remarks(
    steering: Steering, n_prompt: int, passing: Sequence[Float[Tensor, "T D"]], n_new: int
) -> list[str]:
    """Return what part of a steering has no effect, one line each.

    `passing` holds the unsteered model's activations at the hook point over some texts. Reported are positions that do
    not occur, and interventions that change nothing on any of the steered tokens."""
    lines = []
    if isinstance(steering.positions, tuple):
        beyond = [position for position in steering.positions if position > n_prompt + n_new - 2]
        if beyond:
            listed = ", ".join(map(str, beyond[:8])) + (" …" if len(beyond) > 8 else "")
            lines.append(f"positions {listed} do not occur in a text of {n_prompt + n_new} tokens")
    rows = torch.cat([x[steering.steered(torch.arange(len(x)), n_prompt).to(x.device)] for x in passing])
    if not len(rows):
        return [*lines, "the text ended before any of the positions that are steered"]
    amounts = steering.amounts(rows)
    for intervention, changed in zip(steering.interventions, amounts.ne(0).any(0).tolist(), strict=True):
        if not changed:
            lines.append(
                f"feature {intervention.latent}: {intervention.mode} {intervention.strength:g} changes nothing on any of "
                f"the steered tokens{_because_silent(steering, intervention, rows)}"
            )
    return lines


def _because_silent(steering: Steering, intervention: Intervention, rows: Float[Tensor, "n D"]) -> str:
    """Return the end of the sentence that explains an effect of nothing by a latent that never fires, or nothing."""
    if steering.when and not steering.holds(rows).any():
        return f", because feature {steering.when.latent} does not fire there as the condition asks"
    if intervention.mode not in READS_CODE:
        return ""
    values = steering.sae.encode(rows.float().to(steering.sae.device)).of(intervention.latent)
    return "" if values.ne(0).any() else ", where it never fires"
