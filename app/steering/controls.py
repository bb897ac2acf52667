"""Controls of the Steering page. The URL holds their state: each control shows the URL's value and writes changes back to it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import streamlit as st

from app import widgets
from app.session import arms, explanations, features
from app.steering import state
from app.steering.link import MOST_FEATURES, MOST_TEXTS, MOST_TOKENS, Settings
from sae.features.feature import FeatureStore
from sae.report import features as features_report
from sae.report import render, search
from sae.report import steering as steering_report
from sae.runs.run import Run

REACH = 3.0  # a slider of strength goes from -REACH to REACH
MATCHES = 6  # features offered for a search word
UNITS = {"max": "× max", "norm": "× norm"}
UNIT_HELP = (
    "max: the feature's largest value on the corpus. norm: the root mean square norm of the activations."
)
SWITCHES = {
    "chat": ("Chat", "Put the prompt into the tokenizer's chat template."),
    "keep_error": (
        "Keep error",
        "Keep the part of the activations that the SAE does not reconstruct. Otherwise the reconstruction replaces them.",
    ),
    "first_token": ("Steer BOS", "Steer the first token too. SAEs are not trained on it."),
}
PLACES = {"all": "all tokens", "after prompt": "after the prompt", "chosen": "chosen tokens"}


def suggestions(run: str, store: Any) -> None:
    """Show buttons with features and strengths to begin with."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="suggestions"):
        st.caption("Try", width="content")
        for latent, word in state.suggestions(store):
            label = f"{render.markdown(word.strip())} · {latent}"
            st.button(label, key=f"try {latent}", on_click=state.only, args=[run, latent])
        st.caption("at", width="content")
        for label, (mode, strength) in steering_report.STRENGTHS.items():
            st.button(label, key=f"at {label}", on_click=state.at_strength, args=[run, mode, strength])


def interventions(run: str, opened: Run, store: Any, chosen: Settings) -> None:
    """Show each steered feature with its mode and strength, and a box to add another."""
    for place, intervention in enumerate(chosen.interventions):
        with st.container(border=True, key=f"intervention-{place}"):
            with st.container(horizontal=True, vertical_alignment="center"):
                latent = intervention.latent
                label = features.label(store, latent).label
                st.html(steering_report.title(run, latent, label, *state.peaks(store, latent)))
                st.button(
                    "Remove",
                    icon=":material/close:",
                    key=f"remove {place}",
                    disabled=len(chosen.interventions) == 1,
                    on_click=state.remove,
                    args=[run, place],
                )
            if said := arms.side_effects(opened, latent):
                st.caption(said)
            _mode_and_strength(run, chosen, place)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        _finder(run, store, chosen)
        widgets.box(st.segmented_control, "Strength", chosen.unit, partial(state.in_unit, run),
                  options=list(UNITS), format_func=UNITS.__getitem__, required=True, help=UNIT_HELP)  # fmt: skip
    if not chosen.is_full:
        _matches(run, store)


def text(run: str, opened: Run, chosen: Settings) -> None:
    """Show the prompt, how to continue it, and where to steer."""
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
    temperature, help_temperature = chosen.temperature, "0 always takes the likeliest token."
    widgets.box(
        columns[1],
        "Temperature",
        temperature,
        lambda v: change(temperature=float(v)),
        min_value=0.0,
        max_value=2.0,
        step=0.1,
        help=help_temperature,
    )
    widgets.box(
        columns[2],
        "Seed",
        chosen.seed,
        lambda v: change(seed=v),
        min_value=0,
        max_value=10**9 - 1,
        help="The steered and unsteered text are sampled with the same random numbers.",
    )
    widgets.box(
        columns[3], "Texts", chosen.texts, lambda v: change(texts=v), min_value=1, max_value=MOST_TEXTS
    )
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        _positions(run, chosen)
        widgets.box(
            st.text_input,
            "Only where",
            chosen.when,
            partial(state.steer_when, run, opened),
            placeholder="17, 17>2.5, monitor:name",
            width=220,
            help="Steer only the tokens on which another feature fires: its number, a bound on its value, or a monitor of the "
            "page Find. Empty steers all of them.",
        )
    with st.container(horizontal=True, gap="medium"):
        for field, (label, why) in SWITCHES.items():
            widgets.box(
                st.toggle,
                label,
                getattr(chosen, field),
                lambda v, field=field: change(**{field: v}),
                help=why,
            )


def start_buttons(steer: Callable[[], None], sweep: Callable[[], None]) -> None:
    """Show the buttons that start steering or the dose-response sweep."""
    with st.container(horizontal=True, gap="small", key="run-steering"):
        st.button("Steer", type="primary", icon=":material/play_arrow:", on_click=steer)
        st.button("Dose-response", icon=":material/show_chart:", on_click=sweep)


def drafts(chosen: Settings, written: state.Written) -> None:
    """Show both texts of each seed as they are written, without measures: the unsteered is there first."""
    widgets.section(
        "Unsteered and steered", steering_report.about(written.settings, written.settings != chosen)
    )
    for seed, sides in zip(written.settings.seeds, written.drafts, strict=True):
        for column, title, tokens in zip(
            st.columns(2, gap="medium"), ("unsteered", "steered"), sides, strict=True
        ):
            column.caption(f"{title}, seed {seed}")
            column.html(
                steering_report.changed_text(written.prompt, [(text, 0.0, None) for text in tokens], 1.0)
            )


def texts(written: state.Written, store: FeatureStore, chosen: Settings) -> None:
    """Show both texts of each seed with the change of each token and all measures; of a stopped job, what was written."""
    if not written.pairs:
        drafts(chosen, written)
        return
    widgets.section(
        "Unsteered and steered", steering_report.about(written.settings, written.settings != chosen)
    )
    for pair in written.pairs:
        scale = steering_report.largest_change([pair.baseline, pair.steered])
        with st.container(horizontal=True, vertical_alignment="center", gap="small"):
            st.html(render.legend(-scale, scale), width="content")
            st.caption("how much likelier steering makes a token, in nats", width="content")
        sides = (("unsteered", pair.baseline), ("steered", pair.steered))
        for column, (title, text) in zip(st.columns(2, gap="medium"), sides, strict=True):
            column.caption(f"{title}, seed {pair.seed}")
            told = steering_report.tokens(text, store.token_text.pieces(text.tokens))
            column.html(steering_report.changed_text(written.prompt, told, scale))
        remarks(pair.remarks)
        st.html(
            steering_report.before_and_after(
                steering_report.measures(pair.baseline.measures, pair.steered.measures)
            )
        )
    st.html(steering_report.meanings())


def response(chosen: Settings, swept: state.Swept, key: str = "dose-response") -> None:
    """Show a dose-response: curves of all measures beside those of the controls, and a text of each dose."""
    widgets.section(
        "Dose-response", steering_report.about(swept.settings, swept.settings != chosen, dosed=True)
    )
    figure = steering_report.dose_response(swept.response.curves(), steering_report.axis(swept.settings))
    widgets.chart(figure, "dose-response curves", key)
    remarks(swept.response.remarks)
    st.html(steering_report.texts(steering_report.examples(swept.response)))


def remarks(lines: Sequence[str]) -> None:
    """Show a line for each intervention that had no effect."""
    for line in lines:
        st.caption(render.markdown(line))


def complaint() -> None:
    """Show, once, what was wrong with the visitor's last input."""
    message = st.session_state.pop(state.COMPLAINT, None)
    if message:
        widgets.error(message)


def _mode_and_strength(run: str, chosen: Settings, place: int) -> None:
    intervention = chosen.interventions[place]
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        widgets.box(st.selectbox, "Mode", intervention.mode, partial(state.to_mode, run, place), options=list(steering_report.MODES),
             format_func=steering_report.MODES.__getitem__, width=150, key=f"mode {place}")  # fmt: skip
        reach = max(REACH, abs(intervention.strength))
        label = f"Strength, {UNITS[chosen.unit]}" if intervention.has_unit else "Strength"
        widgets.box(st.slider, label, float(intervention.strength), lambda v: state.change_intervention(run, place, strength=v),
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
        placeholder=f"at most {MOST_FEATURES} at once"
        if chosen.is_full
        else "number, or a token it fires on",
        on_change=typed,
        disabled=chosen.is_full,
        width=220,
    )


def _matches(run: str, store: Any) -> None:
    words = st.session_state.get("find", "").strip()
    if not words:
        return
    labels = {latent: label.label for latent, label in features.labels(store).items()}
    table = explanations.with_explanations(features.table(store), store)
    table = features_report.with_labels(table, labels)
    mentioning = features_report.filtered(
        table, features_report.Wanted(words, "live"), features.haystack(store)
    )
    matches = search.ranked(mentioning, words, store.texts)
    if not len(matches):
        st.caption("No feature that fires matches.")
    with st.container(horizontal=True, gap="small", key="matches"):
        for row in matches.slice(0, MATCHES).to_pylist():
            st.button(
                f"{render.markdown(search.best_word(row, words))} · {row['feature']}",
                key=f"add {row['feature']}",
                help=f"found in: {row[search.WHERE]}",
                on_click=state.add_typed,
                args=[run, store, str(row["feature"])],
            )


def _positions(run: str, chosen: Settings) -> None:
    is_chosen = isinstance(chosen.positions, tuple)
    typed = partial(state.steer_positions, run)
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
