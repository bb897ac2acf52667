"""Helpers for pages that run in Streamlit's AppTest: open a page, wait for its job, read its HTML and numbers."""

import json
import time
from html.parser import HTMLParser
from pathlib import Path

import streamlit
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

import app
from activations.disk import files
from sae.features.feature import FeatureStore
from sae.features.folder import INDEX

MAIN = Path(app.__file__).with_name("main.py")


def opened(page: str, query: dict[str, str]) -> AppTest:
    """Return the page after one run, with empty caches."""
    streamlit.cache_resource.clear()
    at = AppTest.from_file(MAIN, default_timeout=60).run()
    if page != "runs":
        at.switch_page(f"{page}/page.py")
    at.query_params.update(query)
    at.run()
    assert not at.exception, at.exception[0].value
    return at


def features_anew(folder: Path) -> None:
    """Write the features.json of a features folder as another `sae features` would, so that what was found of the features is of others."""
    about = json.loads((folder / INDEX).read_text())
    about.pop("checksum")
    files.write_sealed(folder / INDEX, {**about, "anew": about.get("anew", 0) + 1})


def of_other_weights(run: Path) -> None:
    """Change what a run says of its weights, so that what was made of them is of others."""
    path = run / "sae.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "weights_file_sha256": "0" * 64}))


def resealed(run: Path, **changes: object) -> None:
    """Change fields of a run's run.json; those of its settings are given as `config`."""
    about = json.loads((run / "run.json").read_text())
    about.pop("checksum")
    changes["config"] = about["config"] | changes.get("config", {})  # type: ignore[operator]
    files.write_sealed(run / "run.json", {**about, **changes})


def settled(at: AppTest) -> AppTest:
    """Run the page until none of its jobs is running, and return it."""
    for _ in range(600):
        if "Stop" not in [button.label for button in at.button]:
            return at
        time.sleep(0.05)
        at.run()
        assert not at.exception, at.exception[0].value
    raise AssertionError("the job does not end")


def button(at: AppTest, label: str) -> Button:
    """Return the first button with this label."""
    return next(button for button in at.button if button.label == label)


class Text(HTMLParser):
    def __init__(self, source: str):
        super().__init__()
        self.parts: list[str] = []
        self.feed(source)

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


def source(at: AppTest) -> str:
    """Return all HTML of the page itself."""
    pressed = [json.loads(element.proto.json)["html"] for element in at.main.get("bidi_component")]
    return "\n".join([element.value for element in at.main.get("html")] + pressed)


def text(at: AppTest) -> str:
    """Return the text of the page's HTML."""
    return " ".join(Text(source(at)).parts)


def metrics(at: AppTest) -> dict[str, str]:
    """Return names and values of the page's key numbers."""
    return {metric.label: metric.value for metric in at.metric}


def features(at: AppTest) -> list[int]:
    """Return the features in the page's table."""
    return [int(label) for label in at.dataframe[0].value["feature"]]


def store(runs: Path, run: str = "toy") -> FeatureStore:
    """Return the features folder of a run."""
    return FeatureStore(runs / run / "features")
