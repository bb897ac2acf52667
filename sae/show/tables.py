"""Pure: several runs side by side -> HTML tables."""

from collections.abc import Iterable, Sequence

from sae.show.render import escaped


def columns(heads: Sequence[str], rows: Iterable[tuple[str, str, Sequence[str]]]) -> str:
    """Rows of (label, explanation, a value for each head); all plain text."""
    head = "".join(f'<th class="n">{escaped(name)}</th>' for name in heads)
    body = "".join(
        f'<tr><td title="{escaped(why)}">{escaped(label)}</td>'
        + "".join(f'<td class="n">{escaped(value)}</td>' for value in values)
        + "</tr>"
        for label, why, values in rows
    )
    return f'<div class="sae sides"><table class="sae estimates"><tr><th></th>{head}</tr>{body}</table></div>'
