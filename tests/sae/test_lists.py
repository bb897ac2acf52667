"""Lists of latents are kept with their notes, belong to one SAE, travel as a file, and are refused in one line where they do not fit."""

import json
from pathlib import Path

import pytest

from activations.errors import RunError
from sae.features.lists import Lists

HOSTILE = '<script>alert(1)</script> "quoted", =1+1 **x** \u202e'


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    return Lists(tmp_path / "lists.json", "one", 32)


def test_a_list_is_collected_annotated_and_ends_with_its_last_latent(lists: Lists):
    lists.add(" dates ", {7: "", 3: HOSTILE})
    lists.add("dates", {7: "years", 3: "", 9: ""})
    assert lists.all() == {"dates": {7: "years", 3: HOSTILE, 9: ""}}
    for latent in (7, 3, 30, 9):
        assert "dates" in lists.all()
        lists.remove("dates", latent)
    assert lists.all() == {}


def test_a_shared_list_comes_back_with_every_text(lists: Lists, tmp_path: Path):
    lists.add(HOSTILE, {3: HOSTILE, 1: "ü"})
    other = Lists(tmp_path / "elsewhere.json", "one", 32)
    assert other.load(lists.export(HOSTILE), "shared.json") == HOSTILE
    assert other.all() == lists.all()


def test_lists_of_another_sae_stay_and_are_not_shown_or_read(lists: Lists):
    lists.add("dates", {7: ""})
    other = Lists(lists.path, "two", 32)
    assert other.all() == {}
    other.add("names", {1: ""})
    assert lists.all() == {"dates": {7: ""}}
    with pytest.raises(RunError, match=r"shared\.json.*another SAE"):
        other.load(lists.export("dates"), "shared.json")


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"sae_sha256": "one", "name": "a"}', b"[" * 99999]
)
def test_a_file_that_is_no_list_changes_nothing(lists: Lists, content: bytes):
    with pytest.raises(RunError, match=r"^no\.json cannot be read as a list"):
        lists.load(content, "no.json")
    assert not lists.path.exists()


def test_a_file_of_a_newer_release_or_with_a_latent_twice_is_refused(lists: Lists, tmp_path: Path):
    lists.add("dates", {7: "", 8: ""})
    content = json.loads(lists.export("dates"))
    other = Lists(tmp_path / "elsewhere.json", "one", 32)
    for change, said in (
        ({"format": 2}, "format 2"), ({"features": [content["features"][0]] * 2}, "feature 7 twice"),
    ):  # fmt: skip
        with pytest.raises(RunError, match=said):
            other.load(json.dumps({**content, **change}).encode(), "shared.json")
    assert other.all() == {}


@pytest.mark.parametrize(("name", "latent"), [("", 1), (" ", 1), ("x" * 65, 1), ("dates", 32), ("dates", -1)])
def test_a_name_or_latent_that_does_not_fit_is_refused(lists: Lists, name: str, latent: int):
    with pytest.raises(RunError):
        lists.add(name, {latent: ""})
    assert lists.all() == {}


def test_a_damaged_or_newer_file_is_one_line(lists: Lists):
    lists.path.write_text(json.dumps({"format": 2, "saes": {}}))
    with pytest.raises(RunError, match="lists format 2"):
        lists.all()
    lists.path.write_text(json.dumps({"format": 1, "saes": {"one": {"dates": [{"feature": "7"}]}}}))
    with pytest.raises(RunError, match="damaged"):
        lists.all()
