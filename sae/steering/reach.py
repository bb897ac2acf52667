"""Check what a steering can change: whether its positions occur, and which interventions have any effect on a text."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import ConfigError
from sae.steering.interventions import READS_CODE, Intervention
from sae.steering.steering import Steering


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
    if intervention.mode not in READS_CODE:
        return ""
    values = steering.sae.encode(rows.float().to(steering.sae.device)).of(intervention.latent)
    return "" if values.ne(0).any() else ", where it never fires"
