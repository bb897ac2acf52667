"""HTML one can press: what carries `data-do` and `data-to` tells the page, without loading it again."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import streamlit as st
from streamlit.components.v2 import component

# A press with Ctrl or Cmd is left to the browser: a link opens in a new tab. Enter presses what has the focus.
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
    """What was pressed."""

    do: str
    to: int


def pressable(html: str, key: str, does: Mapping[str, Callable[[int], None]]) -> Press | None:
    """Show HTML of the renderer, in which all foreign text is escaped; `does` says what each `data-do` calls.

    The call is made before the page runs again. A press that `does` has nothing for is returned, once."""

    def pressed() -> None:
        what, to = st.session_state[key].pressed
        if what in does:
            does[what](int(to))

    found = _mount(key=key, data={"html": html}, on_pressed_change=pressed).pressed
    return Press(found[0], int(found[1])) if found and found[0] not in does else None
