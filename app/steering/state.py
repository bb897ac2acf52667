"""State of the Steering page: its settings, which the URL holds, and its two jobs, the texts and the dose-response."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from activations.errors import ConfigError, WorkbenchError
from activations.generation import prompt_ids
from activations.language_model import LanguageModel
from app.session import address, features, jobs, models
from app.session.jobs import Job, Report
from app.session.runs import stamp
from app.steering import arms
from app.steering.link import MOST_FEATURES, Settings, checked_condition, read, write
from sae.architectures import SAE
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX
from sae.report import steering as steering_report
from sae.runs.run import Run
from sae.steering.interventions import Calibration, Intervention, Mode, Unit
from sae.steering.measure import Comparison, Draft, compare
from sae.steering.steering import Steering, positions_of
from sae.steering.sweep import DoseResponse, SweepConfig, dose_response
from sae.workflows.find import condition

DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)  # in multiples of a feature's maximum
NORM_SHARE = 0.2  # in a sweep over shares of the activations' norm, this share takes the place of one maximum
SUGGESTED, PEAKS = 5, 5  # features suggested, and peak tokens shown of a feature
COMPLAINT = "steering complaint"  # key of what was wrong with the visitor's last input


@dataclass(frozen=True)
class Written:
    """The texts of all seeds, and the settings they were written with."""

    settings: Settings
    prompt: list[str]
    """The text of each token of the prompt."""
    pairs: list[Comparison]
    """Both texts of each seed with their measures; empty until all are written."""
    drafts: list[tuple[list[str], list[str]]]
    """The text of each token written so far, unsteered and steered, for each seed."""


@dataclass(frozen=True)
class Swept:
    """A dose-response, and the settings it was measured with."""

    settings: Settings
    response: DoseResponse


def settings(run: str, store: FeatureStore) -> Settings:
    """Return the settings that the URL asks for. Raises ConfigError for what is not allowed."""
    chosen = read(st.query_params.to_dict(), len(store), suggestions(store)[0][0])
    st.session_state[_key(run)] = chosen
    return chosen


def query(run: str) -> address.Query:
    """Return what the page's URL carries to show it as it was left in this session, or else the feature seen last."""
    last = _last(run)
    return _in_url(run, last) if last else address.with_feature(run)


def address_with(run: str, latent: int) -> address.Query:
    """Return what the page's URL carries to steer a feature: the session's settings if they steer it, else it alone."""
    last = _last(run)
    if last and latent in [intervention.latent for intervention in last.interventions]:
        return _in_url(run, last)
    return {"run": run, "feature": str(latent)}


def suggestions(store: FeatureStore) -> list[tuple[int, str]]:
    """Return features worth trying first, each with the word it peaks on."""
    return _suggestions(store.path, stamp(store.path / INDEX))


def peaks(store: FeatureStore, latent: int) -> tuple[list[str], list[str]]:
    """Return the tokens a feature peaks on above 0 and below 0, up to five each, the strongest first."""
    above, below = (
        [store.vocabulary[example.ids[example.peak]] for example in store.strongest(latent, sign)[:PEAKS]]
        for sign in (1, -1)
    )
    return above, below


def show(run: str, chosen: Settings) -> None:
    """Change the page's settings."""
    st.session_state[_key(run)] = chosen
    st.query_params.from_dict(_in_url(run, chosen))


def link(run: str, chosen: Settings) -> str:
    """Return the address of the page with these settings."""
    return f"{(st.context.url or 'steering').split('?')[0]}?{urlencode(_in_url(run, chosen))}"


def change(run: str, **changes: Any) -> None:
    """Change some fields of the settings."""
    show(run, replace(_now(run), **changes))


def change_intervention(run: str, place: int, **changes: Any) -> None:
    """Change some fields of one intervention."""
    show(run, _now(run).with_intervention(place, **changes))


def to_mode(run: str, place: int, mode: Mode) -> None:
    """Change the mode of one intervention. A limit (clamp) has no sign, so its strength becomes positive."""
    strength = _now(run).interventions[place].strength
    change_intervention(run, place, mode=mode, strength=abs(strength) if mode == "clamp" else strength)


def in_unit(run: str, unit: Unit) -> None:
    """Measure all strengths in another unit."""
    interventions = tuple(replace(intervention, unit=unit) for intervention in _now(run).interventions)
    change(run, interventions=interventions)


def add(run: str, latent: int) -> None:
    """Steer another feature too, at strength 1."""
    chosen = _now(run)
    more = Intervention(latent, "add", 1.0, chosen.unit)
    show(run, replace(chosen, interventions=(*chosen.interventions, more)))


def add_typed(run: str, store: FeatureStore, text: str) -> None:
    """Steer the feature whose number was typed, too; a number that is not possible, and one too many, become a complaint."""
    if len(text) > 9 or int(text) >= len(store):
        st.session_state[COMPLAINT] = (
            f"feature {text[:40]} does not exist: this run has 0 to {len(store) - 1}"
        )
    elif int(text) in [i.latent for i in _now(run).interventions]:
        st.session_state[COMPLAINT] = f"feature {int(text)} is steered already"
    elif _now(run).is_full:
        st.session_state[COMPLAINT] = (
            f"feature {int(text)} would be one too many: at most {MOST_FEATURES} are steered at once; remove another first"
        )
    else:
        add(run, int(text))


def steer_positions(run: str, text: str) -> None:
    """Steer other positions; a text that does not name positions becomes a complaint."""
    try:
        change(run, positions=positions_of(text))
    except ConfigError as error:
        st.session_state[COMPLAINT] = str(error)


def steer_when(name: str, run: Run, text: str) -> None:
    """Steer only where a condition holds; a text that is none, or a monitor that the run lacks, becomes a complaint."""
    try:
        when = checked_condition(text, run.config.arch.d_sae)
        condition(run, when)
        change(name, when=when)
    except WorkbenchError as error:
        st.session_state[COMPLAINT] = str(error)


def remove(run: str, place: int) -> None:
    """Stop steering one feature."""
    chosen = _now(run)
    rest = chosen.interventions[:place] + chosen.interventions[place + 1 :]
    show(run, replace(chosen, interventions=rest))


def only(run: str, latent: int) -> None:
    """Steer this feature alone, with the mode and strength of the first intervention."""
    chosen = _now(run)
    show(run, replace(chosen, interventions=(replace(chosen.interventions[0], latent=latent),)))


def at_strength(run: str, mode: Mode, strength: float) -> None:
    """Give every steered feature the same mode and strength, in multiples of its maximum."""
    chosen = _now(run)
    interventions = tuple(Intervention(i.latent, mode, strength) for i in chosen.interventions)
    show(run, replace(chosen, interventions=interventions))


def steer(name: str, run: Run, store: FeatureStore) -> None:
    """Start to write the texts, unsteered and steered."""
    chosen = _now(name)
    show(name, chosen)

    def work(report: Report) -> Written:
        with models.using(run, report) as (model, sae):
            ids = prompt_ids(model, chosen.prompt, chosen.chat, run.first_tokens)
            pieces = store.token_text.pieces
            prompt = pieces(ids)

            def keep(draft: Draft) -> None:
                both = zip(draft.baseline, draft.steered, strict=True)
                report.keep(
                    Written(chosen, prompt, [], [(pieces(plain), pieces(steered)) for plain, steered in both])
                )

            pairs = compare(
                model,
                _steering(sae, run, store, chosen),
                ids,
                chosen.sampling,
                chosen.seeds,
                jobs.progress(report),
                keep,
            )
        return Written(chosen, prompt, pairs, [])

    jobs.start(f"steer {name}", work, f"writing steered texts with {name}", features.identity(run))


def sweep(name: str, run: Run, store: FeatureStore) -> None:
    """Start to measure the dose-response."""
    chosen = _now(name)
    show(name, chosen)

    def work(report: Report) -> Swept:
        with models.using(run, report) as (model, sae):
            return Swept(chosen, _dose_response(model, sae, run, store, chosen, report))

    jobs.start(f"sweep {name}", work, f"measuring a dose-response of {name}", features.identity(run))


def jobs_of(name: str, run: Run) -> tuple[Job[Written] | None, Job[Swept] | None]:
    """Return this visitor's last job of each kind with the run's weights and features; None where none was started."""
    of = features.identity(run)
    return jobs.find(f"steer {name}", of), jobs.find(f"sweep {name}", of)


def doses(chosen: Settings) -> Sequence[float]:
    """Return the strengths that a sweep tries for the strongest intervention; beside a limit (clamp), their sizes."""
    unit = NORM_SHARE if chosen.unit == "norm" and chosen.strongest.has_unit else 1.0
    return tuple(round(unit * dose, 6) for dose in DOSES if dose >= 0 or not chosen.has_limit)


def _in_url(run: str, chosen: Settings) -> dict[str, str]:
    return write(run, chosen) | arms.in_url(run)


def _now(run: str) -> Settings:
    """Return the current settings, from which a change starts.

    They are not read from the URL, because of two quick changes the browser sends the second before it knows the URL that
    the first one made."""
    return st.session_state[_key(run)]


def _last(run: str) -> Settings | None:
    """Return the settings that the page was left with in this session; None if the page has not been visited, or if the run
    was trained anew since and lacks a feature that they name."""
    last: Settings | None = st.session_state.get(_key(run))
    return last if last and all(address.exists(run, str(latent)) for latent in last.latents) else None


def _key(run: str) -> str:
    return f"steering {run}"


@st.cache_resource(max_entries=4, show_spinner=False)
def _suggestions(path: Path, stamp: tuple[int, int]) -> list[tuple[int, str]]:
    store = FeatureStore(path)
    return steering_report.suggestions(store.table, store.record.unit, SUGGESTED)


def _dose_response(
    model: LanguageModel, sae: SAE, run: Run, store: FeatureStore, chosen: Settings, report: Report
) -> DoseResponse:
    prompt = prompt_ids(model, chosen.prompt, chosen.chat, run.first_tokens)
    cfg = SweepConfig(tuple(doses(chosen)))
    unit = _steering(sae, run, store, replace(chosen, interventions=of_unit_strength(chosen)))
    return dose_response(
        model,
        unit,
        [prompt],
        chosen.sampling,
        chosen.seeds,
        cfg,
        jobs.progress(report),
        lambda done: report.keep(Swept(chosen, done)),
    )


def of_unit_strength(chosen: Settings) -> tuple[Intervention, ...]:
    """Return the interventions with their strengths divided by that of the strongest, so that a dose is its strength.

    A limit (clamp) cannot change its sign, and so beside one a dose is the size of the strongest one's strength: all keep their signs."""
    largest = abs(chosen.strongest.strength) if chosen.has_limit else chosen.strongest.strength
    return tuple(replace(i, strength=i.strength / largest if largest else 1.0) for i in chosen.interventions)


def _steering(sae: SAE, run: Run, store: FeatureStore, chosen: Settings) -> Steering:
    return Steering(
        sae,
        run.hook,
        chosen.interventions,
        Calibration.of(store),
        chosen.positions,
        chosen.first_token,
        chosen.keep_error,
        condition(run, chosen.when),
    )
