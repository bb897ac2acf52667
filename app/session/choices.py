"""Controls whose choice the page's address holds: Back, a reload and a copied address show it again.

A choice that is not the usual one is a parameter of the URL, and the session keeps it for links to the page."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import streamlit as st

from activations.errors import ConfigError
from app import widgets


def current(page: str, name: str, usual: str, known: Collection[str]) -> str:
    """Return the choice that the URL names, or else the usual one. Raises ConfigError for one that is not known."""
    chosen = st.query_params.get(name, usual)
    if chosen != usual and chosen not in known:
        raise ConfigError(f"{name} = {chosen[:60]!r} must be one of {', '.join(known)}")
    _keep(page, name, usual, chosen)
    return chosen


def change(page: str, name: str, usual: str, chosen: str) -> None:
    """Choose, and keep the rest of the URL.

    The page's other choices come from the session, because when two changes follow quickly, the browser sends the second
    before it knows the first one's URL."""
    _keep(page, name, usual, chosen)
    kept = query(page)
    others = {key: st.query_params.get_all(key) for key in st.query_params if key != name and key not in kept}
    st.query_params.from_dict(others | kept)


def query(page: str) -> dict[str, str]:
    """Return the choices of the page that differ from the usual ones, as its URL holds them."""
    return dict(st.session_state.get(_key(page), {}))


def control(
    widget: Callable[..., Any],
    label: str,
    page: str,
    name: str,
    options: Sequence[Any],
    usual: Any,
    known: Collection[Any] | None = None,
    key: str | None = None,
    **looks: Any,
) -> Any:
    """Show a control and return its choice, one of the options.

    `known` are the options that some run has, though not this one; choosing one of them here is choosing the usual one."""
    texts = {_text(option): option for option in options}
    asked = current(page, name, _text(usual), [*texts, *map(_text, known or ())])
    chosen = texts.get(asked, usual)

    def changed(option: Any) -> None:
        change(page, name, _text(usual), _text(option))

    widgets.box(widget, label, chosen, changed, key or f"{page} {name}", options=options, **looks)
    return chosen


def _keep(page: str, name: str, usual: str, chosen: str) -> None:
    kept = st.session_state.setdefault(_key(page), {})
    kept.pop(name, None)
    if chosen != usual:
        kept[name] = chosen


def _key(page: str) -> str:
    return f"choices of {page}"


def _text(option: Any) -> str:
    return "" if option is None else f"{option:g}" if isinstance(option, float | int) else str(option)
