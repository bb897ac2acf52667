"""A widget whose value is held elsewhere, such as in the URL."""

import math
import time
from collections.abc import Callable
from typing import Any

import streamlit as st

ECHO = 3.0  # seconds in which a browser may still send the value that a page has replaced


def box(
    widget: Callable[..., Any],
    label: str,
    shown: Any,
    changed: Callable[[Any], None],
    key: str | None = None,
    **options: Any,
) -> None:
    """Show a widget whose value is held elsewhere, and call `changed` when the visitor changes it.

    `shown` is the value to show; the key is the label unless one is given. The widget's state is set only when it differs,
    since setting it again would undo what is being typed. Otherwise the value is passed as the default: a slow browser may
    first see the second run of a page, draw the widget anew from its default, and send that with the next press, which
    would look like a change by the visitor. For the same reason the value that `shown` has just replaced is not taken for a
    change: a browser that has not drawn `shown` yet sends it with whatever is pressed next."""
    name = key or label
    replaced = f"{name}, replaced"
    if (before := st.session_state.get(name)) != shown:
        if name in st.session_state:
            st.session_state[replaced] = before, time.monotonic()
        st.session_state[name] = shown
    elif widget.__name__ == "selectbox":
        options["index"] = list(options["options"]).index(shown)
    else:
        options["default" if widget.__name__ in ("segmented_control", "pills") else "value"] = shown

    def heard() -> None:
        value, since = st.session_state.pop(replaced, (None, -math.inf))
        if value == st.session_state[name] and time.monotonic() - since < ECHO:
            st.session_state[name] = shown
        else:
            changed(st.session_state[name])

    widget(label, key=name, on_change=heard, **options)
