"""Find the simpler architectures that an SAE equals in use, for file formats that hold only a few architectures.

All computations are float64; a writer rounds once, at the end."""

from collections.abc import Iterator
from typing import TypeVar

from activations.errors import ForeignError
from sae.architectures import SAE, name_of

S = TypeVar("S", bound=SAE)


def refusal(sae: SAE, title: str, holds: str) -> ForeignError:
    """Return the error for an SAE that a format cannot hold; `holds` says what it can hold."""
    return ForeignError(
        f"{title} cannot compute what {name_of(sae.cfg)} does in use: {sae.cfg.rule}; it holds {holds}: choose another "
        f"format",
        fix="sae export --help",
    )


def forms(sae: SAE, split_signs: bool = False) -> Iterator[SAE]:
    """Yield the SAE, then ever simpler ones that compute the same in use.

    Forms with two latents for each signed one of this SAE are only included with `split_signs`."""
    form: SAE | None = sae
    while form is not None and (split_signs or form.d_sae == sae.d_sae):
        yield form
        form = form.simpler()


def form_of(sae: SAE, kind: type[S], split_signs: bool = False) -> S | None:
    """Return the first of `forms` that is of this class; None if none is."""
    return next((form for form in forms(sae, split_signs) if isinstance(form, kind)), None)


def notes_on(sae: SAE, n_latents: int) -> list[str]:
    """Return notes for the user on a form with n_latents latents that is written in place of the SAE, one line each."""
    F = sae.d_sae
    split = f"its latents are signed, which the format does not allow: each becomes two, j where it is positive and {F} + j where negative"
    return [split] if n_latents != F else []
