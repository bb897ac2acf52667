"""Controls of the Your text page: the box for the text, what to colour by, how to rank features, tokens that can be pressed."""

from collections.abc import Callable, Mapping, Sequence

import streamlit as st
from streamlit.components.v2 import component

from app import widgets
from app.session import choices
from sae.report.numbers import percent

# The focus stays where it was, on what has the same meaning in the new HTML. Enter presses what has the focus.
SCRIPT = """
export default function({ parentElement, data, setTriggerValue }) {
  let root = parentElement.querySelector(":scope > .pressable");
  if (!root) {
    root = document.createElement("div");
    root.className = "pressable";
    parentElement.appendChild(root);
  }
  if (root.source !== data.html) {
    const held = root.contains(document.activeElement) ? document.activeElement.dataset : null;
    root.innerHTML = data.html;
    root.source = data.html;
    if (held?.do) root.querySelector(`[data-do="${held.do}"][data-to="${held.to}"]`)?.focus();
  }
  root.onclick = (event) => {
    const hit = event.target.closest("[data-do]");
    if (!hit) return;
    setTriggerValue("pressed", [hit.dataset.do, Number(hit.dataset.to)]);
  };
}
"""
PAGE = "text"  # in the keys of its choices
_mount = component("sae_pressable", js=SCRIPT, isolate_styles=False)


def pressable(html: str, key: str, actions: Mapping[str, Callable[[int], None]]) -> None:
    """Show HTML from `sae.report`, in which all foreign text is escaped. `actions` maps each `data-do` to a function.

    It is called with the `data-to` of the element that was pressed, before the page runs again."""

    def pressed() -> None:
        do, to = st.session_state[key].pressed
        if do in actions:
            actions[do](int(to))

    _mount(key=key, data={"html": html}, on_pressed_change=pressed)


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
    """Return how features are ranked and above which density they are hidden (1: none).

    Without a ranking by rarity the densities are unknown, and no feature is hidden."""
    by = choices.control(
        st.segmented_control,
        "Rank features by",
        PAGE,
        "rank",
        available,
        available[0],
        known=rankings,
        key="rank by",
        required=True,
        help="\n\n".join(f"**{name}**: {rankings[name]}" for name in available),
    )
    if "rarity" not in available:
        return by, 1.0
    limit = choices.control(
        st.select_slider,
        "Hide features denser than",
        PAGE,
        "densest",
        densest,
        densest[-1],
        key="densest",
        format_func=lambda share: "none" if share == 1.0 else percent(share),
        width=220,
    )
    return by, limit


def token_stepper(place: int, last: int, go_to: Callable[[int], None]) -> None:
    """Show buttons to the previous and the next token, which the arrow keys press too."""
    with widgets.steps(place):
        widgets.step("Previous", "Left", place == 0, go_to, place - 1)
        widgets.step("Next", "Right", place == last, go_to, place + 1)


def _go_to(text: str, show: Callable[[str], None]) -> None:
    show(text)
    st.rerun()
