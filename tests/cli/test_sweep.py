"""`sae sweep`: what a file expands to, what is refused before anything is trained, and that a stop loses nothing."""

import csv
import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from activations.errors import ConfigError
from sae.architectures import ARCHITECTURES, BatchTopKConfig, TopKConfig
from sae.workflows import sweep
from sae.workflows.compare import Result, write_csv, write_pareto
from tests.cli.commands import Server, contents

GRID = """
[[grid]]
arch = "topk"
d_sae = 32
k = [2, 4]
"""


def file(
    folder: Path, store: Path | str = "stores/toy", grid: str = GRID, top: str = "", train: str = ""
) -> Path:
    path = folder / "sweep.toml"
    path.write_text(
        f'store = "{store}"\nout = "{folder / "out"}"\n{top or "windows = 0"}\n'
        f"[train]\nsteps = 20\nbatch = 64\nlog_every = 5\ncheckpoint_minutes = 0.5\n{train}\n{grid}",
        encoding="utf-8",
    )
    return path


def test_lists_are_multiplied_and_runs_named_by_their_settings(tmp_path: Path):
    grid = """
        [[grid]]
        arch = "topk"
        k = [16, 32]
        d_sae = [4096]
        [[grid]]
        arch = "batchtopk"
        k = 2.5
        d_sae = 64
        train.lr = [1e-3, 3e-4]
        train.seed = [0, 1]
    """
    runs = sweep.load(file(tmp_path, grid=grid)).runs
    assert list(runs) == [
        "topk-k16-d_sae4096", "topk-k32-d_sae4096",
        "batchtopk-k2.5-d_sae64-lr0.001-seed0", "batchtopk-k2.5-d_sae64-lr0.001-seed1",
        "batchtopk-k2.5-d_sae64-lr0.0003-seed0", "batchtopk-k2.5-d_sae64-lr0.0003-seed1",
    ]  # fmt: skip
    assert runs["topk-k32-d_sae4096"].arch == TopKConfig(d_sae=4096, k=32)
    last = runs["batchtopk-k2.5-d_sae64-lr0.0003-seed1"]
    assert last.arch == BatchTopKConfig(d_sae=64, k=2.5)
    assert (last.train.lr, last.train.seed, last.train.steps, last.train.batch) == (3e-4, 1, 20, 64)
    assert {run.store for run in runs.values()} == {"stores/toy"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_can_be_swept_with_all_its_defaults(tmp_path: Path, arch: str):
    assert list(sweep.load(file(tmp_path, grid=f'[[grid]]\narch = "{arch}"')).runs) == [arch]


MISTAKES = {
    "no grid": ({"grid": ""}, ["no [[grid]]"]),
    "not TOML": ({"grid": "[[grid"}, ["cannot be read"]),
    "a grid that is no table": ({"grid": "", "top": "windows = 0\ngrid = [1]"}, ["[[grid]]"]),
    "no architecture": ({"grid": "[[grid]]\nk = 4"}, ["grid 1", "None", ", ".join(ARCHITECTURES)]),
    "an unknown architecture": ({"grid": '[[grid]]\narch = "topq"'}, ["grid 1", "'topq'", ", ".join(ARCHITECTURES)]),
    "several architectures at once": ({"grid": '[[grid]]\narch = ["topk"]'}, ["grid 1", "['topk']"]),
    "an unknown setting": ({"grid": GRID + "kk = 3"}, ["topk-d_sae32-k2-kk3", "'kk'", "aux_weight"]),
    "another method's setting": ({"grid": GRID + "threshold_rate = 0.1"}, ["'threshold_rate'"]),
    "a setting of a wrong type": ({"grid": GRID.replace("4]", '"many"]')}, ["k = 'many'", "str", "int"]),
    "a fraction for a whole number": ({"grid": GRID.replace("4]", "4.5]")}, ["k = 4.5", "float", "int"]),
    "a truth value for a number": ({"grid": GRID.replace("4]", "true]")}, ["k = True", "bool", "int"]),
    "a setting out of range": ({"grid": GRID.replace("4]", "64]")}, ["topk-d_sae32-k64", "k = 64", "d_sae = 32"]),
    "an empty list": ({"grid": GRID.replace("[2, 4]", "[]")}, ["grid 1, k", "empty"]),
    "the same run twice": ({"grid": GRID + GRID}, ["grid 2", "topk-d_sae32-k2 is there twice"]),
    "an unknown setting of training": ({"train": "step = 3"}, ["train", "'step'", "steps"]),
    "a wrong type in training": ({"train": 'lr = "fast"'}, ["lr = 'fast'", "float | 'auto' | None"]),
    "training out of range": ({"train": "lr = -1.0"}, ["train.lr = -1.0"]),
    "training out of range in a grid": ({"grid": GRID + "train.warmup_steps = -1"}, ["train.warmup_steps = -1"]),
    "an unknown key": ({"top": "window = 3"}, ["'window'", "windows"]),
    "windows below zero": ({"top": "windows = -1"}, ["windows = -1"]),
    "a batch larger than the store": ({"grid": GRID + "train.batch = 1000000"}, ["1,000,000", "train rows"]),
    "a hook point the store has not": ({"top": 'hook = "blocks.9.hook_mlp_out"'}, ["blocks.9.hook_mlp_out"]),
    "a store that is not there": ({"store": "/nowhere"}, ["/nowhere"]),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_anywhere_is_one_line_and_nothing_is_trained(
    sae: Server, world: Path, tmp_path: Path, changes: dict[str, str], says: list[str]
):
    line = sae("sweep", file(tmp_path, **{"store": world / "store", **changes})).complaint
    assert all(part in line for part in says), line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["store", "out"])
def test_a_file_without_a_store_or_a_place_says_which(tmp_path: Path, missing: str):
    path = file(tmp_path)
    path.write_text(re.sub(rf"(?m)^{missing} = .*\n", "", path.read_text()))
    with pytest.raises(ConfigError, match="out is missing" if missing == "out" else "either a store"):
        sweep.load(path)


def test_a_file_that_is_not_there_is_one_line(sae: Server):
    assert "no sweep at /nowhere.toml" in sae("sweep", "/nowhere.toml").complaint


def lines(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as table:
        return list(csv.DictReader(table))


def test_a_sweep_trains_evaluates_and_plots_and_again_changes_nothing(
    sae: Server, world: Path, tmp_path: Path
):
    grid = GRID + '[[grid]]\narch = "batchtopk"\nd_sae = 32\nk = 3'
    path, out = file(tmp_path, world / "store", grid, top="windows = 4"), tmp_path / "out"
    ended = sae("sweep", path)
    assert ended.code == 0, ended.err
    names = ["topk-d_sae32-k2", "topk-d_sae32-k4", "batchtopk-d_sae32-k3"]
    assert [line["run"] for line in lines(out)] == names
    for line in lines(out):
        evaluation = json.loads((out / line["run"] / "eval.json").read_text())
        assert float(line["fvu"]) == evaluation["estimates"]["fvu"]["value"]
        assert float(line["recovered_mean"]) == evaluation["splice"]["estimates"]["recovered_mean"]["value"]
        assert line["run"] in ended.out
    assert "60 of 60 steps" in ended.err
    page = (out / "pareto.html").read_text()
    assert all(name in page for name in names)
    assert 'src="http' not in page  # plotly itself is in the page
    before = contents(out)
    assert sae("sweep", path).code == 0
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} <= {
        "pareto.html"
    }  # plotly draws random ids


def test_a_longer_grid_or_the_model_s_loss_is_added_to_what_is_there(
    sae: Server, world: Path, tmp_path: Path
):
    out = tmp_path / "out"
    assert sae("sweep", file(tmp_path, world / "store")).code == 0
    weights = (out / "topk-d_sae32-k2/sae.safetensors").read_bytes()
    assert {line["recovered_zero"] for line in lines(out)} == {""}
    longer = GRID.replace("4]", "4, 8]")
    ended = sae("sweep", file(tmp_path, world / "store", longer, top="windows = 4"))
    assert ended.code == 0
    assert "run 3 of 3" in ended.err
    assert "run 1 of 3" not in ended.err, "only k = 8 is trained"
    assert (out / "topk-d_sae32-k2/sae.safetensors").read_bytes() == weights
    assert len(lines(out)) == 3
    assert all(line["recovered_zero"] for line in lines(out))


def test_a_stopped_sweep_goes_on_to_the_same_bits(sae: Server, world: Path, tmp_path: Path):
    path, out = file(tmp_path, world / "store"), tmp_path / "out"
    path.write_text(path.read_text().replace("steps = 20", "steps = 300"))
    second = out / "topk-d_sae32-k4" / "log.jsonl"
    running = sae.start("sweep", path).when(lambda: second.exists() and second.read_text().count("\n") > 3)
    running.kill(signal.SIGTERM)
    ended = running.wait()
    assert ended.code == 143
    assert "same command to continue" in ended.err
    assert (out / "topk-d_sae32-k2/eval.json").exists()
    assert not (out / "topk-d_sae32-k4/sae.json").exists()
    assert sae("sweep", path).code == 0
    whole = weights(out)
    shutil.rmtree(out)
    assert sae("sweep", path).code == 0
    assert weights(out) == whole


def weights(out: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in out.glob("*/sae.safetensors")}


@pytest.mark.parametrize("change", ["steps", "weights"])
def test_a_folder_with_something_else_in_it_is_refused_before_anything_is_trained(
    sae: Server, world: Path, tmp_path: Path, change: str
):
    path, out = file(tmp_path, world / "store", GRID.replace("[2, 4]", "4")), tmp_path / "out"
    if change == "steps":
        assert sae("sweep", path).code == 0
    else:
        (out / "topk-d_sae32-k4").mkdir(parents=True)
        (out / "topk-d_sae32-k4/notes.txt").touch()
    before = contents(out)
    path = file(tmp_path, world / "store")
    path.write_text(path.read_text().replace("steps = 20", "steps = 30"))
    line = sae("sweep", path).complaint
    assert str(out / "topk-d_sae32-k4") in line
    assert ("other settings (train)" if change == "steps" else "does not hold a run") in line
    assert contents(out) == before


def test_a_run_that_diverges_does_not_keep_the_others_from_their_end(
    sae: Server, world: Path, tmp_path: Path
):
    grid = '[[grid]]\narch = "topk"\nd_sae = 32\nk = 4\ntrain.lr = [1e30, 1e-3]\ntrain.warmup_steps = 0'
    line = sae("sweep", file(tmp_path, world / "store", grid)).complaint
    assert "1 of 2 runs diverged: topk-d_sae32-k4-lr1e+30-warmup_steps0: the loss is" in line
    first, second = lines(tmp_path / "out")
    assert first["fvu"] == "" != second["fvu"]


@pytest.mark.parametrize("together", [(), ("--together",)])
def test_a_run_for_which_every_rate_diverges_does_not_either(
    sae: Server, world: Path, tmp_path: Path, together: tuple[str, ...]
):
    grid = (
        '[[grid]]\narch = "relu"\nd_sae = 32\nl1_weight = 1e39\ntrain.lr = "auto"\n'
        '[[grid]]\narch = "topk"\nd_sae = 32\nk = 4'
    )
    line = sae("sweep", file(tmp_path, world / "store", grid), *together).complaint
    assert "1 of 2 runs diverged: relu" in line and "every rate" in line
    first, second = lines(tmp_path / "out")
    assert (first["architecture"], first["fvu"]) == ("relu", "")
    assert second["fvu"]


def drawn(page: Path) -> list[dict]:
    """The traces of a page's plot."""
    found = re.search(r"Plotly\.newPlot\(\s*\"[^\"]+\",\s*(\[.*?\]),\s*\{", page.read_text(), re.S)
    assert found
    return json.loads(found[1])


def test_the_plot_has_a_line_for_each_method_and_width_sorted_by_l0_and_text_as_text(tmp_path: Path):
    results = [
        Result("b", "topk", 64, 8.0, 0.2, 0.9, 0.8, 0.0),
        Result("<script>", "topk", 64, 4.0, 0.3, None, None, 0.0),
        Result("c", "topk", 128, 4.0, 0.25, 0.8, 0.7, 0.0),
        Result("unmeasured", "topk", 32, None, None, None, None, None),
    ]
    write_pareto(tmp_path / "p.html", results)
    found = drawn(tmp_path / "p.html")
    names = [trace["name"] for trace in found if trace["showlegend"]]
    assert names == ["topk, 64 latents", "topk, 128 latents"]
    assert found[0]["x"] == [4.0, 8.0] and found[0]["y"] == [0.3, 0.2]
    assert [trace["y"] for trace in found[2:]] == [[0.9], [0.8]]
    assert "unmeasured" not in (tmp_path / "p.html").read_text()
    assert "<script>" not in json.dumps(found)


def test_no_two_lines_of_the_plot_look_alike(tmp_path: Path):
    widths = range(1, 21)
    write_pareto(tmp_path / "p.html", [Result("r", "topk", w, 4.0, 0.3, None, None, 0.0) for w in widths])
    looks = {(trace["line"]["color"], trace["marker"]["symbol"]) for trace in drawn(tmp_path / "p.html")}
    assert len(looks) == len(widths)


def test_the_table_keeps_full_precision_and_leaves_blanks(tmp_path: Path):
    write_csv(tmp_path / "results.csv", [Result("a, b", "topk", 64, 1 / 3, 0.1, None, None, 0.0)])
    (line,) = lines(tmp_path)
    assert line["run"] == "a, b"
    assert float(line["l0"]) == 1 / 3
    assert line["recovered_zero"] == ""


def test_laws_are_fitted_and_tell_what_a_budget_buys(sae: Server, world: Path, tmp_path: Path):
    """Twelve runs of twenty steps: the smallest sweep that both laws can be fitted to, at one L0 of three."""
    grid = GRID.replace("d_sae = 32", "d_sae = [16, 32, 64]").replace("[2, 4]", "[2, 4, 8]")
    longer = '[[grid]]\narch = "topk"\nk = 4\nd_sae = [16, 32, 64]\ntrain.steps = 60\n'
    path, out = file(tmp_path, world / "store", grid + longer), tmp_path / "out"
    ended = sae("sweep", path, "--fit")
    assert ended.code == 0, ended.err
    assert "scaling laws of topk, blocks.1.hook_resid_pre: 9 runs of 16 to 64 latents" in ended.out
    assert "L(C) at L0 2: " in ended.out, "one length only there"
    content = json.loads((out / "scaling.json").read_text())
    assert content["format"] == 1
    [fit] = content["fits"]
    tokens = {run["run"]: run["tokens"] for run in fit["runs"] if run["joint"]}
    assert tokens == {
        **{f"topk-d_sae{n}-k{k}": 1280 for n in (16, 32, 64) for k in (2, 8)},
        **{f"topk-k4-d_sae{n}-steps60": 3840 for n in (16, 32, 64)},
    }
    assert 'src="http' not in (out / "scaling.html").read_text()
    before = contents(out)
    bought = sae("plan", "scaling", out, "--hours", 1, "--device", "h200", "--fvu", 1)
    assert bought.code == 0, bought.err
    assert "1,024" in bought.out, "sixteen times the widest run"
    assert "the laws are extrapolated there" in bought.out
    assert "sae plan train topk --store" in bought.out
    table = sae("plan", "scaling", out, "--hours", 1, "--device", "h200", "--json", "--l0", 4)
    assert [(one["l0"], one["width"]) for one in json.loads(table.out)] == [(4.0, 1024)]
    assert contents(out) == before
    assert (
        "needs --hours" in sae("plan", "scaling", out).complaint
        or "hours" in sae("plan", "scaling", out).complaint
    )
    assert (
        "'mfr': laws were fitted to topk"
        in sae("plan", "scaling", out, "--hours", 1, "--arch", "mfr").complaint
    )


def test_too_small_a_sweep_is_refused_before_anything_is_trained(sae: Server, world: Path, tmp_path: Path):
    line = sae("sweep", file(tmp_path, world / "store"), "--fit").complaint
    assert (
        "--fit needs 9 runs of one architecture at least, of 3 widths and 3 L0s: topk has 2 of 1 widths"
        in line
    )
    assert not (tmp_path / "out").exists()
    assert (
        "has no scaling laws: run sae sweep FILE --fit"
        in sae("plan", "scaling", tmp_path, "--hours", 1).complaint
    )
