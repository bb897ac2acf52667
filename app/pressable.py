"""HTML whose elements can be pressed: `data-do` and `data-to` reach the page without loading it again."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import streamlit as st
from streamlit.components.v2 import component

# A press with Ctrl or Cmd is left to the browser, which opens the link in a new tab. Enter presses what has the focus.
SCRIPT = """
export default function({ parentElement, data, setTriggerValue }) {
  let root = parentElement.querySelector(":scope > .pressable");
  if (!root) {
    root = document.createElement("div");
    root.className = "pressable";
    parentElement.appendChild(root);
  }
  if (root.source !== data.html) {
    root.innerHTML = data.html;
    root.source = data.html;
  }
  root.onclick = (event) => {
    const hit = event.target.closest("[data-do]");
    if (!hit || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    setTriggerValue("pressed", [hit.dataset.do, Number(hit.dataset.to)]);
  };
}
"""
_mount = component("sae_pressable", js=SCRIPT, isolate_styles=False)


class Press(NamedTuple):
    """The `data-do` and `data-to` of the element that was pressed."""

    do: str
    to: int


def pressable(html: str, key: str, actions: Mapping[str, Callable[[int], None]]) -> Press | None:
    """Show HTML from `sae.report`, in which all foreign text is escaped. `actions` maps each `data-do` to a function.

    The function is called before the page runs again. A press without an action is returned, once."""

    def pressed() -> None:
        do, to = st.session_state[key].pressed
        if do in actions:
            actions[do](int(to))

    press = _mount(key=key, data={"html": html}, on_pressed_change=pressed).pressed
    return Press(press[0], int(press[1])) if press and press[0] not in actions else None
