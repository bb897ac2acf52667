"""What a steering reaches: whether the positions it asks for occur, and which interventions find anything to change."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from activations.errors import ConfigError
from sae.steering.interventions import READS_CODE, Intervention
from sae.steering.steering import Steering


def check_positions(steering: Steering, n_prompt: int, n_new: int) -> None:
    """Raise ConfigError when none of the positions that a text of n_new tokens after the prompt has is steered.

    The last new token is never read by the model while it writes, so its position does not count."""
    last = n_prompt + n_new - 2
    if steering.steered(torch.arange(last + 1), n_prompt).any():
        return
    asked = steering.positions
    asked = ", ".join(map(str, asked[:8])) if isinstance(asked, tuple) else asked
    only_first = last == 0 or steering.positions == (0,)
    remedy = "steer the first token too (--first-token)" if only_first else "choose others"
    raise ConfigError(
        f"positions = {asked}: none of them is steered; a prompt of {n_prompt} tokens and {n_new} new ones have positions "
        f"0 to {last}{'' if steering.first_token else ', of which 0 is left out'}: {remedy}, or ask for more tokens"
    )


def remarks(
    steering: Steering, n_prompt: int, passing: Sequence[Float[Tensor, "T D"]], n_new: int
) -> list[str]:
    """What did not work as asked, a line each, given what passes the hook point of the plain model along some texts.

    Positions that do not occur, and interventions that change nothing on any of the steered tokens."""
    found = []
    if isinstance(steering.positions, tuple):
        beyond = [place for place in steering.positions if place > n_prompt + n_new - 2]
        if beyond:
            listed = ", ".join(map(str, beyond[:8])) + (" …" if len(beyond) > 8 else "")
            found.append(f"positions {listed} do not occur in a text of {n_prompt + n_new} tokens")
    rows = torch.cat([x[steering.steered(torch.arange(len(x)), n_prompt).to(x.device)] for x in passing])
    if not len(rows):
        return [*found, "the text ended before any of the positions that are steered"]
    amounts = steering.amounts(rows)
    for intervention, changed in zip(steering.interventions, amounts.ne(0).any(0).tolist(), strict=True):
        if not changed:
            found.append(
                f"feature {intervention.latent}: {intervention.mode} {intervention.strength:g} changes nothing on any of "
                f"the steered tokens{_why(steering, intervention, rows)}"
            )
    return found


def _why(steering: Steering, intervention: Intervention, rows: Float[Tensor, "n D"]) -> str:
    if intervention.mode not in READS_CODE:
        return ""
    values = steering.sae.encode(rows.float().to(steering.sae.device)).of(intervention.latent)
    return "" if values.ne(0).any() else ", where it never fires"
