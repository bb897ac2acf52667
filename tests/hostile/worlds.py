"""A folder with one whole file of every kind that is read, to be mutated."""

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from activations.demo_assets import TEXT_VERSION
from activations.disk import files
from activations.store import Store
from activations.store_writer import StoreWriter
from sae.architectures import SAE, ReLUConfig, build
from sae.diagnosis.sample import DeadConfig
from sae.features.effects import Effect, MeasuredExample, SideEffect, Word, save_effect
from sae.features.feature import FeatureStore
from sae.features.judgements import READINGS, Detection, Judgement, save_judgements
from sae.features.latent_labels import Label
from sae.features.lenses import LENSES, Agreement, save_lenses
from sae.features.meaning import save_meanings
from sae.features.parents import Rules
from sae.features.peak_words import words_of_latents
from sae.foreign import Origin, writable
from sae.judging import asking
from sae.rules.explaining import ExplainConfig
from sae.runs.records import Estimate
from sae.runs.run import Run
from sae.workflows import compare
from sae.workflows.diagnose import diagnose_run
from sae.workflows.explain import explain
from sae.workflows.families import FamiliesConfig, families
from tests.hostile.readers import CONTEXT, OTHER, WINDOWS
from tests.hostile.repairs import RUN

RANKED = ("saelens", "sparsify")  # formats that hold a TopK, or nothing else
TEXTS = ["the cat sat", "on a naïve mat", "", "while rain fell"] * 5
SWEEP = """store = "stores/demo"
out = "runs/sweep"
windows = 16
[train]
steps = 500
[[grid]]
arch = "topk"
d_sae = 4096
k = [16, 32, 64]
train.lr = [1e-3, 3e-4]
[[grid]]
arch = "matryoshka"
prefixes = [[0.5, 1.0]]
"""


def make(folder: Path, world: Path) -> Path:
    """Fill a folder from the toy world."""
    shutil.copytree(world, folder)
    _point_at(folder / RUN, folder)
    shutil.copytree(folder / RUN, folder / OTHER)
    run, other = Run(folder / RUN), Run(folder / OTHER)
    diagnose_run(run, DeadConfig(rows=600, off_tokens=0, batch=128), None)
    compare.keep(run, other, compare.match_runs(run, other, tokens=300))
    example = MeasuredExample(1, 2, 3.5, [0.5], ["a", "b", "c"], 1, [0.0, 0.0, 0.75])
    side = SideEffect([0.1], [1], [0.5], [Word("a", 0.2)], [Word("b", 0.1)], 0.4, -0.2, [example])
    features = FeatureStore(run.path / "features")
    save_effect(features, Effect(0, side, side))
    explain(run, ExplainConfig(least_firings=3, controls=2))
    families(run, FamiliesConfig(split="all", shuffles=1, rules=Rules(coverage=0.5, share=0.01)))
    _judged(features)
    _measured(features)
    words, of_latent = words_of_latents(features)
    save_meanings(features, words, np.ones((len(words), 4), np.float32), of_latent)
    features.labels.update({0: Label("cat", "a note"), 1: Label("mat")})
    features.labels.export(folder / "labels.csv")
    features.labels.export(folder / "labels-import.json")
    (folder / "sweep.toml").write_text(SWEEP)
    for form, format_ in writable().items():
        sae = run.sae() if form in RANKED else _above_zero(run.sae())
        format_.write(sae, Origin("toy", run.hook), folder / form)
    _texts(folder)
    _unfinished(folder)
    return folder


def _measured(features: FeatureStore) -> None:
    """Lenses with two tokens of each latent."""
    half = Estimate(0.5, 0.25, 0.75)
    rows = [["a", "b"]] * len(features), [[1.5, 0.5]] * len(features)
    table = pa.table(
        {
            f"{side}_{what}": row
            for side in ("raised", "lowered")
            for what, row in zip(("tokens", "logits"), rows, strict=True)
        }
    )
    about = {
        "features_sha256": features.digest,
        "sae_sha256": "0",
        "hook": "h",
        "config": {"latents": 2},
        "jacobian_sha256": "0",
    }
    numbers = {"explained": 0.5, "measured_share": 0.5, "rows": 9, "latents": [0, 1]}
    agreement = {name: asdict(Agreement(half, half, half, half)) for name in LENSES}
    save_lenses(features, table, {**about, **numbers, "agreement": agreement, "better_by": asdict(half)})


def _judged(features: FeatureStore) -> None:
    """What a language model said of two latents, and of one nothing readable."""
    half = Estimate(0.5, 0.25, 0.75)
    detection = {reading: Detection(half, half, 20, 0) for reading in READINGS}
    judged = [
        Judgement(0, 1, "cats", "token “c”", 1, detection, half, 4, 1),
        Judgement(1, -1, None, None, None, {}, Estimate(None, None, None), 0, 5),
    ]
    scores = {
        score: {reading: asdict(found) for reading, found in readings.items()}
        for score, readings in asking.distributions(judged).items()
    }
    counts = {"too_few": [3], "answers": 9, "unread": 6, "tokens_in": 900, "tokens_out": 90}
    content = {"sae_sha256": "0", "model": "m", "config": {"judge_model": "m"}, "scores": scores, **counts}
    save_judgements(features, judged, content)


def _above_zero(sae: SAE) -> SAE:
    """A ReLU SAE of the same weights, for the formats that hold no TopK."""
    other = build(ReLUConfig(d_sae=sae.d_sae), sae.d_model)
    other.load_state_dict(sae.state_dict())
    return other


def _point_at(run: Path, world: Path) -> None:
    about = json.loads((run / "run.json").read_text())
    about["config"]["store"] = str(world / "store")
    (run / "run.json").write_text(json.dumps(about))


def _texts(folder: Path) -> None:
    (folder / "text.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    with (folder / "text.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "more"], *([text, 'a "b", c'] for text in TEXTS)])
    pq.write_table(pa.table({"text": TEXTS, "number": range(len(TEXTS))}), folder / "text.parquet")
    (folder / "text.txt").write_text("\n\n".join(TEXTS))
    files.write_json(folder / f"{TEXT_VERSION.replace(' ', '-')}.json", TEXTS)


def _unfinished(folder: Path) -> None:
    """A harvest of one shard that lacks its index."""
    spec = Store(folder / "store").spec
    found = {hook: torch.ones(1, CONTEXT, width) for hook, width in spec.hooks.items()}
    StoreWriter(folder / "unfinished", spec).write(0, WINDOWS, found)
