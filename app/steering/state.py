"""The Steering page's door: its state in the URL, its two jobs (both texts; the dose-response), what they found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import streamlit as st

from activations.errors import ConfigError
from activations.generation import prompt_ids
from activations.language_model import LanguageModel
from app.session import address, jobs, models
from app.session.jobs import Job, Report
from app.session.runs import stamp
from app.steering.link import Settings, read, write
from sae.architectures import SAE
from sae.features.store import INDEX, FeatureStore
from sae.report import steering as steering_report
from sae.runs.run import Run
from sae.steering.compare import Comparison, compare
from sae.steering.interventions import Calibration, Intervention, Mode, Unit
from sae.steering.steering import Steering, positions_of
from sae.steering.sweep import DoseResponse, SweepConfig, dose_response

DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0)
SUGGESTED, PEAKS = 5, 5
NORM_SHARE = 0.2  # of the activations' norm: what stands for one maximum in a sweep over shares of the norm


@dataclass(frozen=True)
class Written:
    """Texts of all seeds, and the settings they were written with."""

    settings: Settings
    prompt: list[str]
    """Its tokens' texts."""
    pairs: list[Comparison]


@dataclass(frozen=True)
class Swept:
    """A dose-response, and the settings it was taken with."""

    settings: Settings
    found: DoseResponse


def settings(run: str, store: FeatureStore) -> Settings:
    """What the URL asks for. Raises ConfigError, in one line, for what cannot be."""
    chosen = read(st.query_params.to_dict(), len(store), suggestions(store)[0][0])
    st.session_state[_at(run)] = chosen
    return chosen


def query(run: str) -> address.Query:
    """What the page's URL carries to show it as this visit left it, or else the feature last looked at."""
    kept = _kept(run)
    return write(run, kept) if kept else address.with_feature(run)


def address_with(run: str, latent: int) -> address.Query:
    """The same to steer one feature: as this visit left it when it is steered there already, else it alone."""
    kept = _kept(run)
    if kept and latent in [intervention.latent for intervention in kept.interventions]:
        return write(run, kept)
    return {"run": run, "feature": str(latent)}


def suggestions(store: FeatureStore) -> list[tuple[int, str]]:
    """Features worth trying first, with the word each is known by."""
    return _suggestions(store.path, stamp(store.path / INDEX))


def peaks(store: FeatureStore, latent: int) -> tuple[list[str], list[str]]:
    """Tokens the feature peaks on above 0, and below: up to five, the strongest first."""
    above, below = (
        [store.vocabulary[one.ids[one.peak]] for one in store.strongest(latent, sign)[:PEAKS]]
        for sign in (1, -1)
    )
    return above, below


def show(run: str, chosen: Settings) -> None:
    """Go to other settings, on the same page."""
    st.session_state[_at(run)] = chosen
    st.query_params.from_dict(write(run, chosen))


def link(run: str, chosen: Settings) -> str:
    """Address of the page with these settings."""
    return f"{(st.context.url or 'steering').split('?')[0]}?{urlencode(write(run, chosen))}"


def change(run: str, **changes: Any) -> None:
    """Set some fields to something else; the others stay as they are."""
    show(run, replace(_now(run), **changes))


def change_push(run: str, place: int, **changes: Any) -> None:
    """The same for fields of one intervention."""
    show(run, _now(run).with_intervention(place, **changes))


def to_mode(run: str, place: int, mode: Mode) -> None:
    """Steer one feature in another way; a size that is limited has no sign."""
    strength = _now(run).interventions[place].strength
    change_push(run, place, mode=mode, strength=abs(strength) if mode == "clamp" else strength)


def in_unit(run: str, unit: Unit) -> None:
    """Measure all strengths in another unit."""
    same = tuple(replace(intervention, unit=unit) for intervention in _now(run).interventions)
    change(run, interventions=same)


def add(run: str, latent: int) -> None:
    """Steer one more feature, at strength 1."""
    chosen = _now(run)
    more = Intervention(latent, "add", 1.0, chosen.unit)
    show(run, replace(chosen, interventions=(*chosen.interventions, more)))


def add_typed(run: str, store: FeatureStore, text: str) -> None:
    """The same for a number as it was typed; one that cannot be is complained of."""
    if len(text) > 9 or int(text) >= len(store):
        st.session_state["steering complaint"] = (
            f"feature {text[:40]} does not exist: this run has 0 to {len(store) - 1}"
        )
    elif int(text) in [i.latent for i in _now(run).interventions]:
        st.session_state["steering complaint"] = f"feature {int(text)} is steered already"
    else:
        add(run, int(text))


def place(run: str, text: str) -> None:
    """Steer other positions; what is none is complained of."""
    try:
        change(run, positions=positions_of(text))
    except ConfigError as error:
        st.session_state["steering complaint"] = str(error)


def remove(run: str, place: int) -> None:
    """Leave one feature alone again."""
    chosen = _now(run)
    rest = chosen.interventions[:place] + chosen.interventions[place + 1 :]
    show(run, replace(chosen, interventions=rest))


def only(run: str, latent: int) -> None:
    """Steer this feature alone, as strongly as the first one was."""
    chosen = _now(run)
    show(run, replace(chosen, interventions=(replace(chosen.interventions[0], latent=latent),)))


def at_strength(run: str, mode: Mode, strength: float) -> None:
    """Give every feature the same mode and strength, in multiples of its maximum."""
    chosen = _now(run)
    same = tuple(Intervention(i.latent, mode, strength) for i in chosen.interventions)
    show(run, replace(chosen, interventions=same))


def steer(name: str, run: Run, store: FeatureStore) -> None:
    """Begin to write the texts, as it is and steered."""
    chosen = _now(name)
    show(name, chosen)

    def work(report: Report) -> Written:
        report(0.0, "waiting for the language model" if models.ready(run) else "loading the language model")
        with models.using(run) as (model, sae):
            ids = prompt_ids(model, chosen.prompt, chosen.chat, run.first_tokens)
            found = compare(
                model, _steering(sae, run, store, chosen), ids, chosen.sampling, chosen.seeds, report
            )
        return Written(chosen, store.token_text.pieces(ids), found)

    jobs.start(f"steer {name}", work)


def sweep(name: str, run: Run, store: FeatureStore) -> None:
    """Begin to take the dose-response."""
    chosen = _now(name)
    show(name, chosen)

    def work(report: Report) -> Swept:
        report(0.0, "waiting for the language model" if models.ready(run) else "loading the language model")
        with models.using(run) as (model, sae):
            return Swept(chosen, _swept(model, sae, run, store, chosen, report))

    jobs.start(f"sweep {name}", work)


def jobs_of(name: str) -> tuple[Job[Written] | None, Job[Swept] | None]:
    """This visitor's last job of either kind."""
    return jobs.find(f"steer {name}"), jobs.find(f"sweep {name}")


def doses(chosen: Settings) -> Sequence[float]:
    """Strengths a sweep tries, of the strongest of the features: no negative ones where a size is limited."""
    one = NORM_SHARE if chosen.unit == "norm" else 1.0
    limits = any(i.mode == "clamp" for i in chosen.interventions)
    return tuple(round(one * dose, 6) for dose in DOSES if dose >= 0 or not limits)


def _now(run: str) -> Settings:
    """What the page is set to, for a change to begin from.

    Not read from the URL: of two quick changes, the browser sends the second before it knows the first's URL."""
    return st.session_state[_at(run)]


def _kept(run: str) -> Settings | None:
    """What this visit last set the page to, if it was there."""
    return st.session_state.get(_at(run))


def _at(run: str) -> str:
    return f"steering {run}"


@st.cache_resource(max_entries=4, show_spinner=False)
def _suggestions(path: Path, stamp: tuple[int, int]) -> list[tuple[int, str]]:
    store = FeatureStore(path)
    return steering_report.suggestions(store.table, store.about["unit"], SUGGESTED)


def _swept(
    model: LanguageModel, sae: SAE, run: Run, store: FeatureStore, chosen: Settings, report: Report
) -> DoseResponse:
    prompt = prompt_ids(model, chosen.prompt, chosen.chat, run.first_tokens)
    cfg = SweepConfig(tuple(doses(chosen)))
    unit = _steering(sae, run, store, replace(chosen, interventions=_of_unit_strength(chosen)))
    return dose_response(model, unit, [prompt], chosen.sampling, chosen.seeds, cfg, report)


def _of_unit_strength(chosen: Settings) -> tuple[Intervention, ...]:
    """The interventions with their strengths divided by that of the strongest, so that a dose is its strength."""
    largest = max((i.strength for i in chosen.interventions), key=abs)
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
    )
