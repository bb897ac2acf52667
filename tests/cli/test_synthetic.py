"""`sae synthetic`: trains where the truth is known and prints how much of it was found."""

from pathlib import Path

import pytest

from sae.cli.synthetic import LABELS
from sae.evaluation.synthetic import Recovery
from tests.cli.commands import Server

SMALL = ("--arch.d-sae", "12", "--train.steps", "5", "--train.batch", "16")


@pytest.mark.parametrize(
    ("world", "title"),
    [
        ((), "12 latents on 64 planted features (independent) in 32 dimensions"),
        (("tree", "--children", "3"), "12 latents on 8 planted features (tree) in 16 dimensions"),
        (("gaussian", "--n-features", "9"), "12 latents on 9 planted features (gaussian) in 64 dimensions"),
    ],
    ids=["default", "tree", "gaussian"],
)
def test_it_prints_every_measure_of_the_world_asked_for(
    sae: Server, tmp_path: Path, world: tuple[str, ...], title: str
):
    ended = sae("synthetic", "topk", *SMALL, *world, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert title in " ".join(ended.out.split())
    assert all(label in ended.out for label in LABELS.values())
    assert "train: 5 of 5 steps" in ended.err
    assert not list(tmp_path.iterdir())


def test_every_measure_has_a_label():
    assert LABELS.keys() == set(Recovery._fields)


def test_a_world_that_cannot_be_is_refused_in_one_line(sae: Server):
    line = sae("synthetic", "topk", *SMALL, "tree", "--children", "30").complaint
    assert "35 features" in line
    assert "d_model = 16" in line
