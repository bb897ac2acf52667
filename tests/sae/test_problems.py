"""What a run's folder says that makes its SAE useless: told with its remedy, and nothing of an ordinary run."""

import pytest

from sae.runs.problems import problems
from sae.runs.records import Estimate, Evaluation, RunRecord
from sae.runs.run import Run
from tests.cli.commands import Server


def record(arch: dict, train: dict) -> RunRecord:
    return RunRecord(
        {"arch": arch, "train": train}, "blocks.0.hook_resid_post", 8, 1.0, "toy", None, None, None
    )


RECORD = record({"d_sae": 32, "k": 4}, {"lr": 0.01})
LAST = {"fvu": 0.3, "l0": 4.0, "dead": 2}


def evaluated(fvu: float | None = 0.3, l0: float = 4.0, dead: float = 0.1) -> Evaluation:
    return Evaluation(100, 1, {"fvu": Estimate(fvu, fvu, fvu), "l0": Estimate(l0, l0, l0)}, dead, 0.0)


@pytest.mark.parametrize(
    ("last", "evaluation", "said"),
    [
        ({}, None, []),
        ({}, evaluated(), []),
        ({"fvu": 1.0}, evaluated(fvu=1.0), []),
        ({"fvu": 6e15}, None, ["6e+15"]),
        ({"fvu": float("nan")}, None, ["nan"]),
        ({}, evaluated(fvu=1.5), ["1.5"]),
        ({"l0": 0.0, "dead": 32}, None, ["no latent fires"]),
        ({"l0": 0.5, "dead": 32}, None, ["all 32 latents are dead"]),
        ({}, evaluated(dead=1.0, l0=0.0), ["no latent fires"]),
        ({}, evaluated(dead=29 / 32), ["only 3 latents fire, fewer than k = 4"]),
        ({}, evaluated(dead=28 / 32), []),
        ({}, evaluated(fvu=None), []),
    ],
    ids=str,
)
def test_each_problem_is_a_line_with_the_learning_rate_that_was_used(last, evaluation, said):
    found = problems(RECORD, [{**LAST, **last}], evaluation)
    assert len(found) == len(said), found
    for line, part in zip(found, said, strict=True):
        assert part in line and "--train.lr (it was 0.01)" in line


def test_an_imported_sae_is_not_told_to_train_otherwise():
    (line,) = problems(record({"d_sae": 32}, {}), [], evaluated(fvu=7.0))
    assert "train.lr" not in line and "hook point" in line


def test_the_commands_say_it_in_their_last_lines(sae: Server, world, tmp_path):
    bad = tmp_path / "bad"
    ended = sae(
        "train", "topk", "--store", world / "store", "--out", bad, "--arch.d-sae", 32, "--arch.k", 4, "--train.steps", 12,
        "--train.batch", 64, "--train.lr", 1000, "--train.warmup-steps", 0,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert "--train.lr (it was 1000)" in " ".join(ended.out.splitlines()[-2:])
    assert Run(bad).problems and not Run(world / "runs" / "toy").problems
    measured = sae("evaluate", bad, "--windows", 0)
    assert measured.code == 0, measured.err
    assert "--train.lr (it was 1000)" in measured.out.splitlines()[-1]
    compared = sae("compare", bad, world / "runs" / "toy", "--tokens", 50)
    assert compared.code == 0, compared.err
    assert f"{bad}: " in compared.out.splitlines()[-1]
