"""`sae steer`: both texts and their numbers, the sweep's table, the JSON file; on mistakes one line."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from activations.generation import Sampling, prompt_ids
from activations.language_model import load
from sae.cli.steer import LABELS
from sae.features.feature import FeatureStore
from sae.runs.run import Run
from sae.steering.interventions import Calibration, Intervention
from sae.steering.measure import compare
from sae.steering.steering import Steering
from tests import tiny
from tests.cli.commands import Server, contents

SHORT = ["--tokens", 6, "--prompt", "the cat"]


@pytest.fixture
def latent(run: Path) -> int:
    """One that fires often."""
    return int(np.argsort(FeatureStore(run / "features").table["density"].to_numpy())[-4])


def test_it_prints_both_texts_and_writes_the_library_s_numbers(
    sae: Server, world: Path, run: Path, latent: int
):
    before, out = contents(run), run.parent / "steer.json"
    ended = sae("steer", run, "--feature", latent, "--strength", -3, "--seed", 4, *SHORT, "--json", out)
    assert ended.code == 0, ended.err
    assert contents(run) == before
    model, opened = load(str(world / "model")), Run(run)
    steering = Steering(
        opened.sae(),
        opened.hook,
        (Intervention(latent, "add", -3.0),),
        Calibration.of(FeatureStore(run / "features")),
    )
    sampling = Sampling(6, temperature=0.7, top_p=0.95)
    (pair,) = compare(model, steering, prompt_ids(model, "the cat"), sampling, (4,))
    written = json.loads(out.read_text())
    assert written["comparisons"] == [[json.loads(json.dumps(pair.to_json()))]]
    assert written["interventions"] == [{"latent": latent, "mode": "add", "strength": -3.0, "unit": "max"}]
    assert (written["prompts"], written["seeds"], written["hook"]) == (["the cat"], [4], opened.hook)
    assert written["sae_sha256"] == opened.digest
    for number in (pair.steered.measures.perplexity, pair.steered.measures.kl):
        assert f"{number:.3g}" in ended.out
    assert f"feature {latent}: add -3 (max) after 'the cat'" in " ".join(ended.out.split())


def test_the_sweep_prints_and_writes_every_dose_beside_its_controls(
    sae: Server, run: Path, latent: int, tmp_path: Path
):
    out = tmp_path / "sweep.json"
    args = ["--sweep", "--doses", -1, 0, 2, "--random", 2, "--shuffled", 1, "--texts", 2, "--json", out]
    ended = sae("steer", run, "--feature", latent, *SHORT, *args)
    assert ended.code == 0, ended.err
    points = json.loads(out.read_text())["points"]
    assert [(p["kind"], p["dose"], len(p["trials"])) for p in points] == [
        (kind, dose, n) for kind, n in (("latent", 2), ("random", 4), ("shuffled", 2)) for dose in (-1, 0, 2)
    ]
    rows = [line.strip("│").split("│") for line in ended.out.splitlines() if "±" in line and "│" in line]
    assert len(rows) == 8 * 3
    kl = {float(row[0]): [cell.strip() for cell in row[1:]] for row in rows[12:15]}
    assert kl == {
        dose: [f"{p['mean']['kl']:.3g} ± {p['spread']['kl']:.3g}" for p in points if p["dose"] == dose]
        for dose in (-1, 0, 2)
    }


@pytest.mark.parametrize("more", [[], ["--texts", 2], ["--sweep", "--doses", -1, 2]], ids=str)
def test_every_number_can_be_read_on_a_terminal_of_80_columns(
    sae: Server, run: Path, latent: int, more: list
):
    ended = sae("steer", run, "--feature", latent, *SHORT, *more, environment=({"COLUMNS": "80"},))
    assert ended.code == 0, ended.err
    assert "…" not in ended.out
    assert max(map(len, ended.out.splitlines())) <= 80
    assert all(label in ended.out for label in LABELS.values())


def test_several_features_have_strengths_and_modes_of_their_own(sae: Server, run: Path, tmp_path: Path):
    args = ["--feature", 1, 4, "--strength", 2, 0.5, "--mode", "add", "project", "--unit", "norm"]
    more = ["--positions", "after prompt", "--no-keep-error", "--first-token", "--prompt", "a", "b"]
    ended = sae("steer", run, *args, *more, "--tokens", 2, "--json", "s.json", cwd=tmp_path)
    assert ended.code == 0, ended.err
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["interventions"] == [
        {"latent": 1, "mode": "add", "strength": 2.0, "unit": "norm"},
        {"latent": 4, "mode": "project", "strength": 0.5, "unit": "norm"},
    ]
    settings = ("positions", "keep_error", "first_token", "prompts")
    assert [written[name] for name in settings] == ["after prompt", False, True, ["a", "b"]]
    assert len(written["comparisons"]) == 2


def test_markup_in_a_prompt_stays_text(sae: Server, run: Path):
    ended = sae(
        "steer", run, "--feature", 1, "--unit", "norm", "--tokens", 1, "--prompt", "[red]x[/red] [/] <b>"
    )
    assert ended.code == 0, ended.err
    assert "'[red]x[/red] [/] <b>'" in " ".join(ended.out.split())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--feature", 32], "feature 32 does not exist: this SAE has 0 to 31"),
        (["--feature", 1, 1, "--unit", "norm"], "feature 1 is named 2 times"),
        (["--feature", 1, 2, 3, "--strength", 1, 2], "strength is given 2 times for 3 features"),
        (["--feature", 1, "--strength", "nan"], "strength = nan"),
        (["--feature", 1, "--mode", "clamp", "--strength", -1], "clamp limits the size"),
        (["--feature", 1, "--positions", "1,x"], "positions = '1,x'"),
        (["--feature", 1, "--tokens", 0], "tokens = 0"),
        (["--feature", 1, "--temperature", -1], "temperature = -1"),
        (["--feature", 1, "--texts", 0], "texts = 0"),
        (["--feature", 1, "--unit", "norm", "--chat"], "no chat template"),
        (["--feature", 1, "--unit", "norm", "--tokens", 500], "reads at most 128"),
        (["--feature", 1, "--sweep", "--doses", 1, 1], "each must be given once"),
        (["--feature", 1, "--unit", "norm", "--strength", 1e30], "1e+30"),
        (["--feature", 1, "--unit", "norm", "--strength", "1e300", "--sweep"], "1e+300"),
        (["--feature", 1, "--unit", "norm", "--positions", 500], "positions = 500"),
        (["--feature", 1, "--unit", "norm", "--seed", -1], "seed = -1"),
        (["--feature", 1, "--texts", 10**9], "texts = 1000000000"),
        (["--feature", 1, "--shuffled", 1], "--shuffled has no effect without --sweep"),
        (
            ["--feature", 1, "--sweep", "--random", 0, "--shuffled", 0, "--direction-seed", 3],
            "--direction-seed has no effect",
        ),
        (
            ["--feature", 1, 2, "--strength", 1, 2, 3, "--unit", "norm"],
            "strength is given 3 times for 2 features",
        ),
        (["--feature", 1, "--arms-seed", 1], "--arms-seed has no effect without --compare or --forecast"),
        (
            ["--feature", 1, "--unit", "norm", "--mode", "ablate"],
            "--unit belongs to the modes add, set and clamp",
        ),
        (["--feature", 1, "--temperature", 0, "--texts", 3], "--texts changes nothing at --temperature 0"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_that_names_it(sae: Server, run: Path, args: list, says: str):
    line = sae("steer", run, *args, "--json", run / "out.json").complaint
    assert says in line
    assert not (run / "out.json").exists()


def test_a_dead_feature_has_no_maximum_to_be_a_multiple_of(sae: Server, run: Path):
    table = FeatureStore(run / "features").table
    rows = table.to_pylist()
    rows[3] |= {"fired": 0, "max": None, "min": None}
    pq.write_table(pa.Table.from_pylist(rows, table.schema), run / "features" / "features.parquet")
    tiny.sealed_again(run / "features")
    line = sae("steer", run, "--feature", 3).complaint
    assert "feature 3 never fired" in line
    assert "unit norm" in line


def test_without_features_it_says_what_to_run(sae: Server, run: Path):
    shutil.rmtree(run / "features")
    assert f"sae features {run}" in sae("steer", run, "--feature", 1).complaint


def test_no_feature_is_one_line(sae: Server, run: Path):
    assert "name what to steer" in sae("steer", run, "--feature").complaint


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_ends_it_with_nothing_written(sae: Server, run: Path, latent: int, number: int, code: int):
    before = contents(run)
    args = [
        "--feature",
        latent,
        "--tokens",
        100,
        "--sweep",
        "--random",
        30,
        "--texts",
        8,
        "--json",
        run / "out.json",
    ]
    running = sae.start("steer", run, *args)
    started = time.monotonic()
    running.when(lambda: time.monotonic() - started > 2)
    assert running.running
    running.kill(number)
    ended = running.wait()
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert "stopped; the same command continues from here with --compare" in ended.err
    assert contents(run) == before


def test_a_factor_is_not_told_in_units(sae: Server, run: Path, latent: int):
    ended = sae("steer", run, "--feature", latent, "--mode", "ablate", *SHORT)
    assert f"feature {latent}: ablate 1 (factor) after 'the cat'" in " ".join(ended.out.split()), ended.err
