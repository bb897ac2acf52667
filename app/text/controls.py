"""Controls of the Your text page: the box for the text, what to colour by, how to rank features, tokens that can be pressed."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import streamlit as st
from streamlit.components.v2 import component

from app import widgets
from sae.report.numbers import percent

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


BOX, SHOWN = (
    "text box",
    "text in the box",
)  # keys of what is being typed, and of the text last put into the box


def text_box(
    current: str,
    show: Callable[[str], None],
    examples: Mapping[str, str],
    longest: int,
    any_document: Callable[[], str],
) -> None:
    """Show a box for the text with a button that reads it, and examples to press. Typed text stays while the page reruns."""
    if st.session_state.get(SHOWN) != current or BOX not in st.session_state:
        st.session_state[SHOWN] = st.session_state[BOX] = current
    with st.form("text form", border=False):
        st.text_area(
            "Text",
            key=BOX,
            height=90,
            max_chars=longest,
            placeholder="Type or paste a text",
            label_visibility="collapsed",
        )
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            pressed = st.form_submit_button(
                "Read", icon=":material/visibility:", type="primary", shortcut="Mod+Enter"
            )
            for name, text in examples.items():
                if st.form_submit_button(name, key=f"example {name}"):
                    _go_to(text, show)
            if st.form_submit_button("A held-out document", key="example held-out", icon=":material/casino:"):
                _go_to(any_document(), show)
    if pressed:
        _go_to(st.session_state[BOX], show)


def read_again(job: widgets.Job, forget: Callable[[], None]) -> None:
    """Show a button that reads the text again, if the reading was stopped or failed."""
    if not job.running:
        st.button("Read again", icon=":material/refresh:", on_click=forget)


def colour_controls(
    measures: Mapping[str, tuple[str, str]], current: str | int, choose: Callable[[str], None], legend: str
) -> None:
    """Let the visitor choose what the tokens are coloured by: a measure, or the current feature. `legend` is shown beside."""
    options = [*measures, *([str(current)] if isinstance(current, int) else [])]
    widgets.box(
        st.segmented_control,
        "Colour by",
        str(current),
        choose,
        "colour",
        options=options,
        required=True,
        format_func=lambda name: measures[name][0] if name in measures else f"feature {name}",
        help="\n\n".join(f"**{label}**: {why}" for label, why in measures.values()),
    )
    st.html(legend)


def ranking_controls(
    rankings: Mapping[str, str], available: Sequence[str], densest: Sequence[float]
) -> tuple[str, float]:
    """Return how features are ranked and above which density they are hidden (1: none). Other pages do not reset it.

    Without a ranking by rarity the densities are unknown, and no feature is hidden."""
    by = st.segmented_control(
        "Rank features by",
        available,
        default=available[0],
        required=True,
        key="rank by",
        persist_state="session",
        help="\n\n".join(f"**{name}**: {rankings[name]}" for name in available),
    )
    if "rarity" not in available:
        return by, 1.0
    limit = st.select_slider(
        "Hide features denser than",
        densest,
        densest[-1],
        lambda share: "none" if share == 1.0 else percent(share),
        key="densest",
        persist_state="session",
        width=220,
    )
    return by, limit


def token_stepper(place: int, last: int, go_to: Callable[[int], None]) -> None:
    """Show buttons to the previous and the next token, which the arrow keys press too."""
    widgets.step("Previous", "Left", place == 0, go_to, place - 1)
    widgets.step("Next", "Right", place == last, go_to, place + 1)


def _go_to(text: str, show: Callable[[str], None]) -> None:
    show(text)
    st.rerun()
