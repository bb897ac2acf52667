"""State and controls of the Feature page: other features, examples, the label, the measured effect, a text to try, HTML export."""

from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256

import streamlit as st

from activations.errors import RunError
from app import widgets
from app.session import choices, families, features, jobs, models, runs
from sae.features import effects
from sae.features import feature as feature_page
from sae.features.effects import Effect, measure_effect
from sae.features.feature import FeatureStore
from sae.features.latent_labels import Label
from sae.features.lenses import jacobian_of
from sae.reading.reading import Reading
from sae.report import families as families_report
from sae.report import lens as lens_report
from sae.report import render
from sae.report.feature import Describe
from sae.runs.run import Run

LONGEST_LABEL, LONGEST_NOTE = 200, 4000  # characters
ALL = 0  # the option "all"


def save_label(store: FeatureStore, latent: int, before: Label, label: str, note: str) -> None:
    """Save what the visitor calls a feature. Raises RunError where it no longer has the label and note `before`.

    Texts are cut to the length that the form allows, since a visitor's browser need not respect the form."""
    store.labels.set(latent, label[:LONGEST_LABEL], note[:LONGEST_NOTE], before)


def effect(store: FeatureStore, latent: int) -> Effect | None:
    """Return a feature's measured effect on the model; None if it has not been measured."""
    return effects.load_effect(store, latent)


def effect_job(run: Run, latent: int) -> jobs.Job[None] | None:
    """Return this visitor's job that measures a feature's effect, running or finished; None if none was started."""
    return jobs.find(_effect_key(run, latent))


def measure(run: Run, latent: int) -> None:
    """Start to measure a feature's effect on the model; the result is saved beside the features."""
    title = f"measuring the effect of feature {latent} of {run.name}"
    jobs.start(_effect_key(run, latent), partial(_measure, run, features.of(run), latent), title)


def own_text(run: Run) -> jobs.Job[Reading] | None:
    """Return the job that runs the model and SAE on this visitor's text; it is kept when the visitor goes to another feature."""
    return jobs.find(f"trial {run.path}", features.identity(run))


def try_text(run: Run, text: str) -> None:
    """Start to run the model and SAE on a text."""
    work, title = partial(models.read_text, run, text), f"reading a text with {run.name}"
    jobs.start(f"trial {run.path}", work, title, features.identity(run))


def values_on(reading: Reading, latent: int) -> tuple[list[str], list[float]]:
    """Return the tokens of a text that was read and a feature's value on each, without tokens that are not text, such as BOS."""
    triples = zip(reading.tokens, reading.values_of(latent).tolist(), reading.is_text.tolist(), strict=True)
    of_text = [(token, value) for token, value, is_text in triples if is_text]
    return [token for token, _ in of_text], [value for _, value in of_text]


def as_html(store: FeatureStore, latent: int, title: str) -> str:
    """Return a feature as a self-contained HTML document."""
    return render.document(
        f"{title}: feature {latent}",
        [feature_page.body(store.feature(latent), feature_page.AROUND, feature_page.EXAMPLES)],
    )


def _measure(run: Run, store: FeatureStore, latent: int, report: jobs.Report) -> None:
    with models.using(run, report) as (model, sae):
        report(0.01, "running its examples with and without it")
        effect = measure_effect(
            model,
            sae,
            store,
            run.hook,
            latent,
            progress=jobs.progress(report),
            jacobian=jacobian_of(run),
        )
        effects.save_effect(store, effect)


def _effect_key(run: Run, latent: int) -> str:
    return f"effect {run.path} {latent}"


def stepper(
    index: int,
    last: int,
    go_to: Callable[[int], None],
    step: Callable[[int], None],
    go_to_any: Callable[[], None],
) -> None:
    """Show buttons to the previous, the next and a random feature, and a box for a number from 0 to `last`.

    `step` receives -1 or 1, `go_to` a feature's number."""
    with widgets.steps(index):
        widgets.step("Previous", "Left", index == 0, step, -1)
        # A browser that has not drawn the next feature's box yet sends the number in the old one with its next press. So every
        # feature has a box of its own, and the number that a box was drawn with does not mean that the user asked to go there.
        widgets.box(
            st.number_input,
            "feature",
            index,
            lambda number: None if number == index else go_to(number),
            f"number box {index}",
            min_value=0,
            max_value=last,
            width=130,
            label_visibility="collapsed",
        )
        widgets.step("Next", "Right", index == last, step, 1)
    st.button("Random", icon=":material/casino:", help="Any feature that fires", on_click=go_to_any)


def example_controls(legend: str) -> tuple[int | None, int | None]:
    """Let the visitor choose how many tokens of a window and how many examples of a group to show; None is all.

    `legend` is HTML to show beside the controls."""
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom", key="example-controls"):
        around = _how_many("Tokens shown", (16, 32, 64, ALL), 32, "around")
        most = _how_many("Examples per group", (5, 10, ALL), 5, "most")
        st.html(legend)
    return around or None, most or None


def lenses(shown: Sequence[lens_report.Section]) -> None:
    """Show a feature's lenses, the first of them open and the others folded."""
    for place, lens in enumerate(shown):
        if place == 0:
            widgets.section(lens.title, lens.remark)
        with st.expander(lens.title) if place else st.container():
            raised, lowered = st.columns(2)
            raised.html(lens.lists[0])
            lowered.html(lens.lists[1])
            st.caption(render.markdown(lens.agreement))


def family(run: Run, store: FeatureStore, latent: int, describe: Describe, name: str) -> None:
    """Show a feature's parent, siblings and children, or in one line the command that finds them."""
    found = families.of(store)
    if found is None:
        st.caption(render.markdown(f"Its parent and children: {runs.command('families', run)}"))
        return
    widgets.section("Family", "its parent, siblings and children")
    if kin := families_report.kin(found.of(latent), describe, name):
        st.html(kin)
    else:
        fired = found.table["fired"][latent].as_py()
        st.caption(render.markdown(families_report.alone(found.record, fired)))


def label_editor(stored: Label, path: str, key: str, save: Callable[[str, str], None]) -> None:
    """Show a button that opens a form for a label and a note, with the `stored` ones in it; `path` is the file that keeps them.

    `save` raises RunError where they have changed since the form was drawn, as when another visitor has saved others. The form
    then says so and holds these: each stored label has a form of its own, since one form would keep the texts it was drawn with."""
    drawn = f"{key} {sha256(repr(stored).encode()).hexdigest()[:12]}"
    label_key, note_key, refused = f"label {drawn}", f"note {drawn}", f"label refused {key}"

    def submit() -> None:
        mine = st.session_state[label_key]
        try:
            save(mine, st.session_state[note_key])
        except RunError as error:
            st.session_state[refused] = error.message + (f". Yours, {mine!r}, is not saved" if mine else "")

    with (
        st.popover("Label", icon=":material/label:"),
        st.form(f"form {drawn}", border=False, enter_to_submit=True),
    ):
        if refused in st.session_state:
            widgets.warnings([st.session_state.pop(refused)])
        st.text_input(
            "Label",
            stored.label,
            key=label_key,
            max_chars=LONGEST_LABEL,
            placeholder="what it stands for",
        )
        st.text_area(
            "Note", stored.note, key=note_key, max_chars=LONGEST_NOTE, placeholder="anything worth keeping"
        )
        st.caption(render.markdown(f"Saved in {path}"))
        st.form_submit_button("Save", type="primary", on_click=submit)


def label(html: str) -> None:
    """Show a label and note, or rules, given as HTML; nothing if it is empty."""
    if html:
        st.html(html)


def text_to_try(key: str, placeholder: str, go: Callable[[str], None]) -> None:
    """Show a box for a text of the visitor's, which `go` receives when the button is pressed."""
    with st.form(f"form {key}", border=False):
        text = st.text_area(
            "Your text", key=key, placeholder=placeholder, label_visibility="collapsed", height=90
        )
        if st.form_submit_button("Try", icon=":material/play_arrow:"):
            go(text)
            st.rerun()


def start_button(label: str, remark: str, start: Callable[[], None]) -> None:
    """Show a button that starts long work, with a remark beside it."""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(label, icon=":material/play_arrow:", on_click=start)
        st.caption(render.markdown(remark))


def file_button(label: str, content: Callable[[], str], name: str, help: str) -> None:
    """Show a button that saves an HTML file, which is made when the button is pressed."""
    st.download_button(
        label, content, name, "text/html", icon=":material/download:", on_click="ignore", help=help
    )


def _how_many(label: str, options: Sequence[int], usual: int, name: str) -> int:
    return choices.control(
        st.segmented_control,
        label,
        "feature",
        name,
        options,
        usual,
        key=name,
        required=True,
        format_func=lambda n: "all" if n == ALL else str(n),
    )
