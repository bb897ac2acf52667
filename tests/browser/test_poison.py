"""A run in which every text is hostile markup, on every page in a real browser: it is shown and does nothing."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlencode

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from activations.disk import files
from sae.features.effects import Effect, MeasuredExample, SideEffect, Word, save_effect
from sae.features.feature import FeatureStore
from sae.features.latent_labels import Label
from sae.runs.run import Run
from sae.workflows import compare
from tests import tiny
from tests.app import wounded
from tests.app.worlds import HOSTILE_RUN
from tests.browser.conftest import serving
from tests.browser.pages import LOADING
from tests.hostile.repairs import rewrite

POISON = (
    '<img src=x onerror="window.hacked=1"><a href="http://evil.invalid/">a</a> ![i](http://evil.invalid/i.png) '
    "[l](http://evil.invalid/) :red[r] $x^2$ `c` **b** <script>window.hacked=1</script> \" ' & %{x}"
)
TAKEN = (  # a link to a page of ours may carry the text in its address, where its slashes are escaped
    "img[src*=evil], img[onerror], a[href*='//evil'], [*|href*='//evil'], .katex, script:text('hacked'), [onerror]"
)
PAGES = {
    "runs": {},
    "features": {"compare": "0,1"},
    "feature": {"feature": "0"},
    "text": {"text": POISON},
    "steering": {"prompt": POISON},
    "dead": {},
    "compare": {"other": "plain", "a": "0", "b": "0"},
}


@pytest.fixture(scope="module")
def address(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address where `sae app` serves these runs."""
    folder = wounded.make(tmp_path_factory.mktemp("poison") / "runs", world / "runs" / "toy")
    shutil.copytree(world / "runs" / "toy", folder / "plain")
    poison(folder)
    with serving(folder, 18603) as address:
        yield address


def poison(folder: Path) -> None:
    """Put the hostile text wherever a run has a text."""
    run = Run(folder / HOSTILE_RUN)
    path = compare.keep(
        run, Run(folder / "wounded"), compare.match_runs(run, Run(folder / "new"), tokens=200)
    )
    about = json.loads(path.read_text())
    about["second"]["weights_file_sha256"] = Run(folder / "wounded").digest
    path.write_text(json.dumps(about))
    features = FeatureStore(run.path / "features")
    example = MeasuredExample(1, 2, 3.5, [0.5], [POISON] * 3, 1, [0.0, 0.0, 0.75])
    side = SideEffect([0.1], [1], [0.5], [Word(POISON, 0.2)], [Word(POISON, 0.1)], 0.4, 0.2, [example])
    features.labels.update({latent: Label(POISON[:200], POISON) for latent in range(8)})
    rewrite(run.path / "run.json", lambda about: about.update(model=POISON, git_commit=POISON))
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    shutil.copy(folder / "new" / "eval.json", run.path / "eval.json")
    rewrite(run.path / "eval.json", lambda about: about.update(sae_sha256=run.digest))
    rewrite(run.path / "eval.json", lambda about: about["estimates"].update({POISON: estimate}))
    _poison_table(run.path / "features" / "features.parquet")
    tiny.sealed_again(features.path)
    tiny.respelled(features.path, lambda name: f"{name}{POISON}")
    digests = {name: files.sha256(features.path / name) for name in features.record.sha256}
    rewrite(
        features.path / "features.json", lambda about: about.update(sha256=digests, clusters=[[POISON]] * 99)
    )
    save_effect(FeatureStore(features.path), Effect(0, side, side))
    _poison_table(run.path / "dead" / "latents.parquet", ("kind",))
    digest = {"latents.parquet": files.sha256(run.path / "dead" / "latents.parquet")}
    fates = {"cause": {POISON: 3}, "training": {POISON: 3}, "fires_on": {POISON: 3}}
    rewrite(run.path / "dead" / "dead.json", lambda about: about.update(sha256=digest, dead_by=fates))


def _poison_table(path: Path, spared: tuple[str, ...] = ()) -> None:
    table = pq.read_table(path)
    for place, field in enumerate(table.schema):
        if field.name in spared:
            continue
        if field.type == pa.string():
            table = table.set_column(place, field, pa.array([POISON] * len(table)))
        elif field.type == pa.list_(pa.string()):
            poisoned = [[POISON] * len(row or ()) for row in table[place].to_pylist()]
            table = table.set_column(place, field, pa.array(poisoned, field.type))
    pq.write_table(table, path)


@pytest.mark.parametrize("path", PAGES)
def test_it_is_shown_and_does_nothing(page: Page, path: str):
    page.goto(f"/{path}?{urlencode({'run': HOSTILE_RUN, **PAGES[path]}, quote_via=quote)}")
    page.locator("h1").wait_for()
    page.wait_for_timeout(1500)  # for what would load late
    if path == "text":
        page.get_by_role("alert").wait_for(timeout=LOADING)
    expect(page.locator("[data-testid=stSkeleton], [data-testid=stAppSkeleton]")).to_have_count(0)
    assert page.get_by_test_id("stException").count() == 0
    for alert in page.get_by_role("alert").all():
        assert "cannot load the model" in alert.inner_text()
        assert "onerror" in alert.inner_text()
    assert "onerror" in page.content(), "it is there as text"
    assert page.locator(TAKEN).count() == 0
    assert page.evaluate("window.hacked") is None
    if path == "features":
        page.get_by_text("Map by cluster").click()
        page.wait_for_timeout(1000)
        page.locator(".js-plotly-plot .scatterlayer .point").first.hover(force=True)
        page.wait_for_timeout(500)
        assert page.locator(TAKEN).count() == 0
    if "SHOTS" in os.environ:
        page.screenshot(path=f"{os.environ['SHOTS']}/{path}.png")
