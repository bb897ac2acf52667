"""The script that draws the methods' pictures draws one for each, from runs of a few steps here."""

import pytest

from benchmarks import pictures
from sae.architectures import ARCHITECTURES


def test_every_method_has_its_picture():
    assert pictures.PICTURES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_picture_can_be_drawn(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pictures, "ROWS", 500)
    figure = pictures.PICTURES[name](steps=10)
    assert len(figure.data) >= 2
    assert all(len(trace.y) for trace in figure.data)
