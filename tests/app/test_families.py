"""The Feature page shows a feature's parent, siblings and children, a dense one's kind, and how to find what is not known."""

import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from sae.diagnosis.report import KINDS, DeadReport
from sae.diagnosis.sample import DeadConfig
from sae.features.families import INDEX, Families, families_of
from sae.features.feature import FeatureStore
from sae.features.parents import Rules
from sae.report import render
from sae.report.families import MEANING
from sae.report.render import escaped
from sae.runs.run import Run
from sae.workflows.compare import keep, match_runs
from sae.workflows.diagnose import diagnose_run
from sae.workflows.families import FamiliesConfig, families
from tests import tiny
from tests.app import pages
from tests.app.pages import source

CFG = FamiliesConfig(split="all", shuffles=1, rules=Rules(coverage=0.5, share=0.01))
PARENT, CHILD = (f'<th scope="row">{kind}</th>' for kind in ("parent", "child"))


@pytest.fixture(scope="module")
def folder(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run with families and a report on dense latents."""
    made = tmp_path_factory.mktemp("families")
    run = Run(shutil.copytree(world / "runs" / "toy", made / "toy"))
    families(run, CFG)
    diagnose_run(run, DeadConfig(rows=512, off_tokens=0), None)
    return made


def found(folder: Path) -> Families:
    made = families_of(FeatureStore(folder / "toy" / "features"))
    assert made is not None
    return made


def shown(folder: Path, monkeypatch: pytest.MonkeyPatch, latent: int) -> AppTest:
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
    return pages.opened("feature", {"run": "toy", "feature": str(latent)})


def captions(at: AppTest) -> str:
    return "\n".join(caption.value for caption in at.caption)


def test_kin_are_links_with_their_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch):
    root = found(folder).roots[0]
    child = found(folder).children(root)[0]
    at = shown(folder, monkeypatch, child)
    link = found(folder).link(child)
    assert link is not None
    page = source(at)
    assert '<th scope="col">kin</th>' in page and escaped(MEANING) in page
    assert PARENT in page and render.feature_link("toy", root) in page
    assert f">{100 * link.coverage:.3g} %<" in page and f">{link.share:.2f}<" in page
    above = source(shown(folder, monkeypatch, root))
    assert CHILD in above and render.feature_link("toy", child) in above
    assert PARENT not in above


def test_a_feature_without_kin_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    alone = next(n for n in range(32) if n not in found(folder).roots and not found(folder).of(n).parent)
    at = shown(folder, monkeypatch, alone)
    assert render.markdown("It has no parent and no children") in captions(at)


def test_a_dense_feature_has_its_kind_beside_it(folder: Path, monkeypatch: pytest.MonkeyPatch):
    report = DeadReport(folder / "toy" / "dead")
    rows = report.rows(KINDS[-1])
    assert rows, "the toy run has dense latents"
    page = source(shown(folder, monkeypatch, rows[0]["latent"]))
    assert f"dense: {rows[0].get('dense_kind')}" in page
    other = next(n for n in range(32) if n not in [row["latent"] for row in rows])
    assert 'class="badge"' not in source(shown(folder, monkeypatch, other))


def test_the_compare_page_says_whether_parents_are_matched_too(
    world: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.argv", [str(pages.MAIN), str(folder)])
    first, second = Run(folder / "toy"), tiny.run(world, steps=32, out=folder / "again")
    there = families(second, CFG)
    comparison = match_runs(first, second, tokens=300)
    keep(first, second, comparison)
    partners = comparison.cosine.latents["first"].partner
    pairs = [(found(folder).link(a), there.link(b), a, b) for a, b in enumerate(partners) if b >= 0]
    told = set()
    for above, beside, a, b in pairs:
        if above and beside:
            matched = partners[above.parent] == beside.parent
            sentence = f"Their parents, {above.parent} and {beside.parent}, are {'matched' if matched else 'not matched'} with each other"
        elif above:
            sentence = f"Only one of them has a parent: {above.parent}, in the first run."
        else:
            continue
        if (kind := sentence[:9]) not in told:
            asked = {"run": "toy", "other": "again", "a": str(a), "b": str(b)}
            assert render.markdown(sentence) in captions(pages.opened("compare", asked))
        told.add(kind)
    assert told
    a, b = next((a, b) for above, _, a, b in pairs if above)
    (second.path / "features" / INDEX).unlink()
    asked = {"run": "toy", "other": "again", "a": str(a), "b": str(b)}
    assert "parent" not in captions(pages.opened("compare", asked)), "nothing is known of the second run's"


def test_an_open_page_shows_no_families_of_other_features(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    child = found(folder).children(found(folder).roots[0])[0]
    copy = shutil.copytree(folder, tmp_path / "copy")
    at = shown(copy, monkeypatch, child)
    assert PARENT in source(at)
    pages.features_anew(copy / "toy" / "features")
    assert not at.run().exception
    assert PARENT not in source(at) and render.markdown("sae families") in captions(at)


def test_damage_is_reported_and_without_the_file_a_line_says_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    index = folder / "toy" / "features" / INDEX
    whole = index.read_text()
    try:
        index.write_text(whole[: len(whole) // 2])
        at = shown(folder, monkeypatch, 7)
        assert any(render.markdown(INDEX) in error.value for error in at.error)
        index.unlink()
        at = shown(folder, monkeypatch, 7)
        assert not at.error and PARENT not in source(at)
        assert render.markdown("sae families") in captions(at)
    finally:
        index.write_text(whole)
