"""`sae synthetic`: trains where the truth is known and prints how much of it was found."""

from pathlib import Path

import pytest

from sae.cli.synthetic import LABELS
from sae.evaluation.recovery import Recovery
from tests.cli.commands import Server

SMALL = ("--arch.d-sae", "12", "--train.steps", "5", "--train.batch", "16")


@pytest.mark.parametrize(
    ("world", "title"),
    [
        ((), "12 latents on 64 planted features (independent) in 32 dimensions"),
        (("tree", "--children", "3"), "12 latents on 8 planted features (tree) in 16 dimensions"),
        (("structured", "--roots", "4"), "12 latents on 48 planted features (structured) in 48 dimensions"),
        (("gaussian", "--n-features", "9"), "12 latents on 9 planted features (gaussian) in 64 dimensions"),
    ],
    ids=["default", "tree", "structured", "gaussian"],
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


def test_all_methods_come_in_one_table_that_goes_on_in_its_folder(sae: Server, tmp_path: Path):
    asked = ("synthetic", "all", "--d-sae", "16", "--train.steps", "5", "--train.batch", "16")
    asked += ("--out", str(tmp_path / "table"))
    first = sae(*asked, "--methods", "topk", "matryoshka", "tree")
    assert first.code == 0, first.err
    lines = [line.split() for line in first.out.splitlines()]
    assert ["L0", "FVU", "F1", "MCC", "uniq", "found", "parents", "beside", "absorb", "verdict"] in lines
    assert {line[0] for line in lines if len(line) > 10} >= {"topk", "matryoshka"}
    assert "the hierarchy is not recovered by topk, matryoshka" in first.out
    second = sae(*asked, "--methods", "topk", "batchtopk", "tree")
    assert second.code == 0, second.err
    assert "matryoshka" not in second.out, "methods that were not asked for are kept, not shown"
    assert {line.split()[0] for line in second.out.splitlines() if len(line.split()) > 10} >= {
        "topk",
        "batchtopk",
    }


def test_a_table_of_other_settings_and_an_unknown_method_are_one_line(sae: Server, tmp_path: Path):
    asked = ("synthetic", "all", "--train.batch", "16", "--methods", "topk", "--out", tmp_path)
    assert sae(*asked, "--train.steps", "5", "tree").code == 0
    assert "other settings (train)" in sae(*asked, "--train.steps", "6", "tree").complaint
    assert "unknown method 'topkk'" in sae("synthetic", "all", "--methods", "topkk").complaint
    assert "20 trees" in sae("synthetic", "all", "structured", "--roots", "20").complaint
