"""A folder with a run of every kind: plain, signed, hostile texts, dead and negative features, unfinished."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from sae.architectures import AbsTopKConfig
from tests import tiny

HOSTILE = {
    "a": "<b>bold</b>",
    "e": '<img src=x onerror="window.hacked = 1">',
    "l": "<script>window.hacked = 1</script>",
    "t": "**strong** :red[red] $x^2$ `code` [link](http://example.com)",
    "n": "&amp; \" ' \u202e\n\t\x00",
    " ": "   ",
}
HOSTILE_RUN = "<i>run</i> **x** :red[y] $z$ & 'q'"
RUNS = sorted([HOSTILE_RUN, "bare", "signed", "sweep/unfinished", "toy"])
DEAD, NEGATIVE = 3, 5  # features of the hostile run


def make(folder: Path, toy: Path) -> Path:
    """Fill a folder with runs made from the finished toy run."""
    shutil.copytree(toy, folder / "toy")
    tiny.run(toy.parents[1], arch=AbsTopKConfig(d_sae=24, k=3), out=folder / "signed")
    shutil.copytree(toy, folder / "bare", ignore=shutil.ignore_patterns("features", "eval.json"))
    unfinished = folder / "sweep" / "unfinished"
    shutil.copytree(toy, unfinished, ignore=shutil.ignore_patterns("features", "eval.json", "sae.*"))
    log = (unfinished / "log.jsonl").read_text().splitlines(keepends=True)
    (unfinished / "log.jsonl").write_text("".join(log[:3]))
    hostile = folder / HOSTILE_RUN
    shutil.copytree(toy, hostile)
    _change_table(hostile / "features")
    _change_tensors(hostile / "features")
    tiny.sealed_again(hostile / "features")
    tiny.respelled(hostile / "features", lambda name: HOSTILE.get(name, name))
    return folder


def _change_table(features: Path) -> None:
    table = pq.read_table(features / "features.parquet")
    rows = table.to_pylist()
    for row in rows:
        for column in ("peak_tokens", "raised_tokens", "lowered_tokens"):
            row[column] = [HOSTILE.get(token, token) for token in row[column]]
    dead, negative = rows[DEAD], rows[NEGATIVE]
    silent = dict.fromkeys(("positive_share", "mean", "std", "skew", "kurtosis", "max", "min"))
    silent |= {"fired": 0, "density": 0.0, "first_row": -1, "last_row": -1, "peak_tokens": []}
    silent |= dict.fromkeys(("map_x", "map_y", "cluster"))
    dead.update(silent)
    for row in rows:
        alive = [place for place, other in enumerate(row["cofiring"]) if DEAD not in (other, row["latent"])]
        for column in ("cofiring", "cofiring_counts", "cofiring_pmi"):
            row[column] = [row[column][place] for place in alive]
    negative.update(positive_share=0.0, mean=-negative["mean"], max=-negative["min"], min=-negative["max"])
    pq.write_table(pa.Table.from_pylist(rows, table.schema), features / "features.parquet")


def _change_tensors(features: Path) -> None:
    examples = load_file(features / "examples.safetensors")
    for kind in ("positive", "negative", "sampled"):
        examples[kind][DEAD] = -1
    pairs = {p for kind in ("positive", "sampled") for p in examples[kind][NEGATIVE].tolist() if p >= 0}
    for pair in pairs:
        start, stop = examples["offsets"][pair : pair + 2]
        examples["values"][start:stop] *= -1
    examples["negative"][NEGATIVE] = examples["positive"][NEGATIVE]
    examples["positive"][NEGATIVE] = -1
    save_file(examples, features / "examples.safetensors")
    histograms = load_file(features / "histograms.safetensors")
    histograms["counts"][DEAD] = 0
    histograms["counts"][NEGATIVE] = histograms["counts"][NEGATIVE].flip(0)
    save_file(histograms, features / "histograms.safetensors")
