"""What the glossary (docs/glossary.md) says of a term, as the help of a heading, a table's column or a number."""

import re
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name(
    "glossary.md"
)  # the same bytes as docs/glossary.md, which an installed package does not have
ENTRY = re.compile(r"^\*\*(.+?)\*\*(?: \([^)]*\))?: (.+?)(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")
REFERENCE = re.compile(
    r" ?\(\[[^\]]*\]\([^)]*\)\)| ?\[Formula\]\([^)]*\)\.?"
)  # it leads to another page of the documentation
TERMS = {
    "ce recovered": "CE recovered",
    "dead latents": "Dead latent",
    "density": "Density",
    "dead": "Dead latent",
    "explanation": "Explanation",
    "feature": "Feature",
    "features": "Feature",
    "fires together with": "Co-firing",
    "fvu": "FVU",
    "hook point": "Hook point",
    "jacobian lens": "Logit lens",
    "l0": "L0",
    "label": "Label",
    "latent": "Latent",
    "latents": "Latent",
    "logit lens": "Logit lens",
    "nearest features": "Decoder row",
    "norms of inputs and codes": "eps_LBO",
    "which hook point?": "Hook point",
}
"""Headings, columns and numbers as the app writes them, in lower case → the term of the glossary that explains each."""


@cache
def entries() -> dict[str, str]:
    """Return the glossary: what each term means, without links."""
    return {
        term: " ".join(LINK.sub(r"\1", REFERENCE.sub("", text)).split())
        for term, text in ENTRY.findall(FILE.read_text(encoding="utf-8"))
    }


def explained(header: str) -> str | None:
    """Return what the glossary says of a heading, a column or a number; None where it has no such term."""
    term = TERMS.get(header.lower())
    return None if term is None else entries()[term]
