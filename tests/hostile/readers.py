"""Every reader: the file it reads in the toy world, and all that is made of it. A new reader is one line of the table."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from activations import demo_assets, language_model, text
from activations.shard import shard_name
from activations.shuffle import ShuffledReader
from activations.store import INDEX, Store, verify
from activations.store_writer import StoreWriter
from activations.text import TextConfig
from activations.tokens import NOWHERE, windows
from sae.diagnosis.report import DeadReport
from sae.features import feature as feature_page
from sae.features.cluster_names import cluster_names
from sae.features.explanations import explanations_of
from sae.features.families import families_of
from sae.features.feature import FeatureStore
from sae.features.judgements import judgements_of
from sae.features.lenses import lenses_of
from sae.features.meaning import kept_meanings
from sae.foreign import FORMATS
from sae.report import compare as compare_report
from sae.report import dead as dead_report
from sae.report import explanations as explanations_report
from sae.report import families as families_report
from sae.report import features as features_report
from sae.report import judgements as judgements_report
from sae.report import lens as lens_report
from sae.report import runs as runs_report
from sae.runs.run import Run
from sae.training import checkpoints
from sae.training.trainer import Trainer
from sae.workflows import compare, sweep
from sae.workflows import compare as comparison
from tests import tiny
from tests.activations.toys import window
from tests.hostile.repairs import (
    FEATURES,
    RUN,
    repair_dead,
    repair_explained,
    repair_features,
    repair_kin,
    repair_lenses,
    repair_sae,
    repair_store,
)

OTHER = "runs/other"
CONTEXT = 16
WINDOWS = [window([NOWHERE, *[0] * (CONTEXT - 1)], [NOWHERE, *range(CONTEXT - 1)])]
CHECKPOINT = f"{RUN}/checkpoints/step-00000030"


class Reader(NamedTuple):
    """One file of the world and what reads it."""

    file: str
    read: Callable[[Path], object]
    """Given the world's folder."""
    repair: Callable[[Path], None] | None = None
    """Makes what is kept of the file elsewhere, such as its checksum, agree with it again."""
    seconds: float = 5.0
    """Most seconds of processor time for one case."""


def store(world: Path) -> None:
    """A store, as a training and `sae store` read it."""
    found = Store(world / "store")
    repr(found)
    [*verify(found)]
    hook = found.only_hook()
    shard = found.read(0, (hook,))
    found.rows(shard, "held-out", positions="last")
    [*islice(found.batches(hook, 16), 2)]
    [*islice(ShuffledReader(found, hook, 16, prefetch=0), 3)]


def unfinished(world: Path) -> None:
    """A harvest under way, gone on with to its end, in a copy."""
    copy = world / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world / "unfinished", copy)
    writer = StoreWriter(copy, Store(world / "store").spec)
    if writer.has(0):
        writer.check(0, WINDOWS)
    writer.finish(1, True)
    Store(copy).read(0)


def run(world: Path) -> None:
    """A run, as the Runs page and `sae compare` read it."""
    found = Run(world / RUN)
    repr(found)
    _ = found.history, found.digest
    measured = {"toy": found.evaluation} if found.evaluation else {}
    log = found.log
    runs_report.runs({"toy": found}, measured, {"toy": 1})
    (
        runs_report.settings(found.record),
        runs_report.summary(found.record),
        runs_report.progress(found.record, log, 1e6),
    )
    runs_report.side_by_side([measured.get("toy")])
    runs_report.frontier({"toy": found}, measured)
    compare.result(found)


def sae(world: Path) -> None:
    """A trained SAE, used."""
    found = Run(world / RUN).sae()
    found(torch.zeros(2, found.d_model))


def checkpoint(world: Path) -> None:
    """A checkpoint, gone on from."""
    made = Run(world / OTHER)
    trainer = Trainer(made.sae(), made.config.train)
    reader = ShuffledReader(made.store, made.hook, made.config.train.batch, prefetch=0)
    reader.restore(checkpoints.restore(world / CHECKPOINT, trainer))
    [*islice(reader, 1)]


def features(world: Path) -> None:
    """Some features, with all that their page and a notebook show."""
    found = FeatureStore(world / FEATURES)
    _ = found.texts, found.clusters
    for latent in range(3):
        feature_page.body(found.feature(latent), 40, 10)
        found.strongest(latent, -1)
    feature_page.describer(found, found.labels.all(), {})(0)


def explained(world: Path) -> None:
    """Rules of features, with all that is shown of them."""
    features = FeatureStore(world / FEATURES)
    found = explanations_of(features)
    if found is None:
        return
    _ = explanations_report.lines(found.record), explanations_report.conclusions(found.record)
    beside = explanations_report.beside(found.record)
    for both in found.by_latent.values():
        explanations_report.head(both, beside)
    features_report.with_explanations(features_report.features(features.table), found.texts, found.f1)
    feature_page.describer(features, {}, found.names)(0)


def meaning(world: Path) -> None:
    """The words of features, searched, compared and counted."""
    found = kept_meanings(FeatureStore(world / FEATURES))
    if found is None:
        return
    found.scores(np.ones(found.vectors.shape[1], np.float32))
    for latent in range(3):
        found.commonest(latent), found.neighbours(latent, 5)
    cluster_names(FeatureStore(world / FEATURES), found, None)


def lenses(world: Path) -> None:
    """The lenses of features, with all that is shown of them."""
    features = FeatureStore(world / FEATURES)
    found = lenses_of(features)
    if found is None:
        return
    for latent in range(3):
        lens_report.sections(features.row(latent), found.of(latent), found.record)


def judged(world: Path) -> None:
    """What a language model said of features, with all that is shown of it."""
    found = judgements_of(FeatureStore(world / FEATURES))
    if found is None:
        return
    _ = judgements_report.lines(found.record), judgements_report.conclusions(found.record)
    for one in found.record.judged:
        judgements_report.head(one, found.record)


def kin(world: Path) -> None:
    """Families of features, with all that is shown of them."""
    features = FeatureStore(world / FEATURES)
    found = families_of(features)
    if found is None:
        return
    describe = feature_page.describer(features, {}, {})
    _ = [*families_report.lines(found.record)], families_report.conclusion(found.record)
    for root in found.roots[:3]:
        families_report.tree(found, root, describe, 3)
    for latent in range(3):
        families_report.kin(found.of(latent), describe, "toy")


def labels(world: Path) -> None:
    """Labels, as they are and as a file brings them."""
    found = FeatureStore(world / FEATURES).labels
    found.all()
    for name in ("labels.csv", "labels-import.json"):
        found.load(world / name)


def compared(world: Path) -> None:
    """Two runs matched, as the Compare page shows them."""
    found = comparison.kept(Run(world / RUN), Run(world / OTHER))
    for measure in compare_report.MEASURES if found else ():
        compare_report.counts(found, measure), compare_report.histogram(found, measure)


def dead(world: Path) -> None:
    """The report on dead latents, as its page shows it."""
    found = DeadReport(world / RUN / "dead")
    rows = found.rows()
    dead_report.numbers(found.record, rows)
    dead_report.basis(found.record)
    dead_report.silent(found.record)
    found.row(0)


def documents(name: str) -> Callable[[Path], object]:
    """The documents of a data set."""
    return lambda world: [*islice(text.documents(TextConfig(dataset=str(world / name))), 50)]


def model(world: Path) -> None:
    """A language model, loaded and run once."""
    found = language_model.load(str(world / "model"))
    found.logits(torch.zeros(1, 4, dtype=torch.long))
    [*windows(["a text"], found.tokenizer, tiny.harvest_config(Path("-")).packing)]


def embedded_text(world: Path) -> None:
    """The cached embedded text."""
    demo_assets.cache_folder = lambda: world
    [*demo_assets.documents()]


def foreign(form: str) -> Callable[[Path], object]:
    """Another tool's SAE, used."""

    def read(world: Path) -> None:
        found = FORMATS[form].read(world / form).sae
        found(torch.zeros(2, found.d_model))

    return read


READERS: dict[str, Reader] = {
    "store index": Reader(f"store/{INDEX}", store),
    "store shard": Reader(f"store/{shard_name(0)}", store, repair_store),
    "harvest under way": Reader("unfinished/shard-00000.json", unfinished),
    "harvest's job": Reader("unfinished/harvest.json", unfinished),
    "run": Reader(f"{RUN}/run.json", run),
    "log": Reader(f"{RUN}/log.jsonl", run),
    "evaluation": Reader(f"{RUN}/eval.json", run),
    "history": Reader(f"{RUN}/latents.safetensors", run),
    "SAE": Reader(f"{RUN}/sae.json", sae),
    "weights": Reader(f"{RUN}/sae.safetensors", sae, repair_sae),
    "checkpoint": Reader(f"{CHECKPOINT}/training.json", checkpoint),
    "checkpoint's tensors": Reader(f"{CHECKPOINT}/training.safetensors", checkpoint),
    "features": Reader(f"{FEATURES}/features.json", features),
    "features table": Reader(f"{FEATURES}/features.parquet", features, repair_features),
    "features texts": Reader(f"{FEATURES}/texts.parquet", features, repair_features),
    "histograms": Reader(f"{FEATURES}/histograms.safetensors", features, repair_features),
    "examples": Reader(f"{FEATURES}/examples.safetensors", features, repair_features),
    "vocabulary": Reader(f"{FEATURES}/vocabulary.json", features, repair_features),
    "spellings": Reader(f"{FEATURES}/spellings.safetensors", features, repair_features),
    "effect": Reader(f"{FEATURES}/effects/0.json", features),
    "explanations": Reader(f"{FEATURES}/explanations.json", explained),
    "explanations table": Reader(f"{FEATURES}/explanations.parquet", explained, repair_explained),
    "families": Reader(f"{FEATURES}/families.json", kin),
    "families table": Reader(f"{FEATURES}/families.parquet", kin, repair_kin),
    "meaning": Reader(f"{FEATURES}/meaning.safetensors", meaning),
    "lenses": Reader(f"{FEATURES}/lens.json", lenses),
    "lenses table": Reader(f"{FEATURES}/lens.parquet", lenses, repair_lenses),
    "judgements": Reader(f"{FEATURES}/judgements.json", judged),
    "labels": Reader(f"{RUN}/labels.json", labels),
    "labels from CSV": Reader("labels.csv", labels),
    "labels from JSON": Reader("labels-import.json", labels),
    "comparison": Reader(f"{RUN}/compare-other.json", compared),
    "dead": Reader(f"{RUN}/dead/dead.json", dead),
    "dead table": Reader(f"{RUN}/dead/latents.parquet", dead, repair_dead),
    "sweep": Reader("sweep.toml", lambda world: sweep.load(world / "sweep.toml")),
    "data set .jsonl": Reader("text.jsonl", documents("text.jsonl")),
    "data set .json": Reader("text.json", documents("text.json")),
    "data set .csv": Reader("text.csv", documents("text.csv")),
    "data set .parquet": Reader("text.parquet", documents("text.parquet")),
    "data set .txt": Reader("text.txt", documents("text.txt")),
    "SAELens settings": Reader("saelens/cfg.json", foreign("saelens")),
    "SAELens weights": Reader("saelens/sae_weights.safetensors", foreign("saelens")),
    "dictionary_learning settings": Reader("dictionary_learning/config.json", foreign("dictionary_learning")),
    "dictionary_learning weights": Reader("dictionary_learning/ae.pt", foreign("dictionary_learning")),
    "sparsify settings": Reader("sparsify/cfg.json", foreign("sparsify")),
    "sparsify weights": Reader("sparsify/sae.safetensors", foreign("sparsify")),
    "OpenAI's weights": Reader("openai/autoencoder.pt", foreign("openai")),
    "Gemma Scope's weights": Reader("gemma_scope/params.npz", foreign("gemma_scope")),
    "embedded text": Reader("gensim-4.4-wikipedia+news-v1.json", embedded_text),
    "model": Reader("model/config.json", model, seconds=20),
    "model's weights": Reader("model/model.safetensors", model, seconds=20),
    "tokenizer": Reader("model/tokenizer.json", model, seconds=20),
    "tokenizer's settings": Reader("model/tokenizer_config.json", model, seconds=20),
    "generation settings": Reader("model/generation_config.json", model, seconds=20),
}
