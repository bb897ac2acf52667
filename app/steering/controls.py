"""The Steering page's controls. The URL holds their state: each shows what it says, and writes what is changed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app import widgets
from app.feature import state as feature
from app.session import features
from app.steering import state
from app.steering.link import MOST_FEATURES, MOST_TEXTS, MOST_TOKENS, Settings
from sae.report import features as features_report
from sae.report import render
from sae.report import steering as steering_report

REACH = 3.0  # how far a slider goes, in units of strength
MATCHES = 6  # features offered for a word
UNITS = {"max": "× max", "norm": "× norm"}
UNIT_HELP = "max: its largest value on the corpus. norm: the root mean square norm of the activations."
ZERO_TO_TWO: dict[str, Any] = {"min_value": 0.0, "max_value": 2.0, "step": 0.1}
SWITCHES = {
    "chat": ("Chat", "Lay the tokenizer's chat template around the prompt."),
    "keep_error": (
        "Keep error",
        "Keep what the SAE does not reconstruct. Without, its reconstruction takes the activations' place.",
    ),
    "first_token": ("Steer BOS", "Steer the first token too, which SAEs are not trained on."),
}
PLACES = {"all": "all tokens", "after prompt": "after the prompt", "chosen": "chosen tokens"}


def suggestions(run: str, store: Any) -> None:
    """Features to begin with, and strengths to begin at: one press each."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="suggestions"):
        st.caption("Try", width="content")
        for latent, word in state.suggestions(store):
            label = f"{render.markdown(word.strip())} · {latent}"
            st.button(label, key=f"try {latent}", on_click=state.only, args=[run, latent])
        st.caption("at", width="content")
        for label, (mode, strength) in steering_report.STRENGTHS.items():
            st.button(label, key=f"at {label}", on_click=state.at_strength, args=[run, mode, strength])


def pushes(run: str, store: Any, chosen: Settings) -> None:
    """Each steered feature with its mode and strength, and room for more."""
    for place, intervention in enumerate(chosen.interventions):
        with st.container(border=True, key=f"push-{place}"):
            with st.container(horizontal=True, vertical_alignment="center"):
                latent = intervention.latent
                label = feature.label(store, latent).label
                st.html(steering_report.title(run, latent, label, *state.peaks(store, latent)))
                st.button(
                    "Remove",
                    icon=":material/close:",
                    key=f"remove {place}",
                    disabled=len(chosen.interventions) == 1,
                    on_click=state.remove,
                    args=[run, place],
                )
            _push(run, chosen, place)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        _finder(run, store, chosen)
        widgets.box(st.segmented_control, "Strength", chosen.unit, partial(state.in_unit, run),
                  options=list(UNITS), format_func=UNITS.__getitem__, required=True, help=UNIT_HELP)  # fmt: skip
    _matches(run, store)


def text(run: str, chosen: Settings) -> None:
    """Prompt, how to go on with it, and where to steer."""
    change = partial(state.change, run)
    widgets.box(st.text_area, "Prompt", chosen.prompt, lambda v: change(prompt=v), height=80, max_chars=4000)
    columns = [column.number_input for column in st.columns([3, 4, 3, 3])]
    widgets.box(
        columns[0],
        "New tokens",
        chosen.tokens,
        lambda v: change(tokens=v),
        min_value=1,
        max_value=MOST_TOKENS,
    )
    warm, cold = chosen.temperature, "0 takes the likeliest token each time."
    widgets.box(
        columns[1], "Temperature", warm, lambda v: change(temperature=float(v)), **ZERO_TO_TWO, help=cold
    )
    noise = "Both texts are drawn with the same noise."
    widgets.box(
        columns[2],
        "Seed",
        chosen.seed,
        lambda v: change(seed=v),
        min_value=0,
        max_value=10**9 - 1,
        help=noise,
    )
    widgets.box(
        columns[3], "Texts", chosen.texts, lambda v: change(texts=v), min_value=1, max_value=MOST_TEXTS
    )
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        _positions(run, chosen)
    with st.container(horizontal=True, gap="medium"):
        for field, (label, why) in SWITCHES.items():
            widgets.box(
                st.toggle,
                label,
                getattr(chosen, field),
                lambda v, field=field: change(**{field: v}),
                help=why,
            )


def begin(steer: Callable[[], None], sweep: Callable[[], None]) -> None:
    """The buttons that begin either job."""
    with st.container(horizontal=True, gap="small", key="run-steering"):
        st.button("Steer", type="primary", icon=":material/play_arrow:", on_click=steer)
        st.button("Dose-response", icon=":material/show_chart:", on_click=sweep)


def remarks(lines: Sequence[str]) -> None:
    """What of a steering did nothing, a line each."""
    for line in lines:
        st.caption(render.markdown(line))


def complaint() -> None:
    """What was wrong with the last thing typed, once."""
    said = st.session_state.pop("steering complaint", None)
    if said:
        widgets.error(said)


def _push(run: str, chosen: Settings, place: int) -> None:
    intervention = chosen.interventions[place]
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        widgets.box(st.selectbox, "Mode", intervention.mode, partial(state.to_mode, run, place), options=list(steering_report.MODES),
             format_func=steering_report.MODES.__getitem__, width=150, key=f"mode {place}")  # fmt: skip
        reach = max(REACH, abs(intervention.strength))
        label = f"Strength, {UNITS[chosen.unit]}" if intervention.has_unit else "Strength"
        widgets.box(st.slider, label, float(intervention.strength), lambda v: state.change_push(run, place, strength=v),
             min_value=0.0 if intervention.mode == "clamp" else -reach, max_value=reach, step=0.05,
             key=f"strength {place}")  # fmt: skip


def _finder(run: str, store: Any, chosen: Settings) -> None:
    def typed() -> None:
        words = st.session_state["find"].strip()
        if words.isascii() and words.isdigit():
            state.add_typed(run, store, words)
            st.session_state["find"] = ""

    st.text_input(
        "Add a feature",
        key="find",
        placeholder="number, or a token it fires on",
        on_change=typed,
        disabled=len(chosen.interventions) >= MOST_FEATURES,
        width=220,
    )


def _matches(run: str, store: Any) -> None:
    words = st.session_state.get("find", "").strip()
    if not words:
        return
    found = features_report.filtered(
        features.table(store), features_report.Wanted(words, "alive"), features.haystack(store)
    ).sort_by([("max", "descending")])
    if not len(found):
        st.caption("No feature that fires has such a token.")
    with st.container(horizontal=True, gap="small", key="matches"):
        for row in found.slice(0, MATCHES).to_pylist():
            word = render.markdown(next(iter(row["fires most on"]), "").strip())
            st.button(
                f"{word} · {row['feature']}",
                key=f"add {row['feature']}",
                on_click=state.add_typed,
                args=[run, store, str(row["feature"])],
            )


def _positions(run: str, chosen: Settings) -> None:
    is_chosen = isinstance(chosen.positions, tuple)
    typed = partial(state.place, run)
    widgets.box(st.segmented_control, "Steered", "chosen" if is_chosen else chosen.positions,
         lambda v: typed("1" if v == "chosen" else v),
         options=list(PLACES), format_func=PLACES.__getitem__, required=True)  # fmt: skip
    if is_chosen:
        numbers = ",".join(map(str, chosen.positions))
        widgets.box(
            st.text_input,
            "Tokens, counted from 0",
            numbers,
            typed,
            width=200,
            help="0 is the first token, BOS.",
        )
