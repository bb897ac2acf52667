"""Labels per token: the model's surprise, and the latents a run spends on a token, are those of each row."""

import json
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from activations import token_labels
from activations.disk import files
from activations.document_labels import unit_of
from activations.errors import ConfigError, LabelError, RunError, StoreError, WorkbenchError
from activations.harvest import harvest
from activations.language_model import LanguageModel, load
from activations.shuffle import ShuffledReader
from activations.store import Store
from activations.token_labels import LabelSet, choose, surprisal
from activations.tokens import NOWHERE, PackingConfig
from sae.architectures import AdaptiveKConfig, BatchTopKConfig, TopKConfig, build
from sae.config import RunConfig, TrainConfig
from sae.runs.run import Run
from sae.workflows.harvest import label
from sae.workflows.train import train
from tests import tiny
from tests.activations.harvests import config, contents, interrupted


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text, a store, a batchtopk run and a topk run on it."""
    folder = tmp_path_factory.mktemp("labelling")
    tiny.store(folder)
    for name, arch in (("batchtopk", BatchTopKConfig(d_sae=32, k=4)), ("topk", TopKConfig(d_sae=32, k=4))):
        train(RunConfig(store=str(folder / "store"), arch=arch, train=settings()), folder / name)
    return folder


@pytest.fixture(scope="module")
def lm(place: Path) -> LanguageModel:
    return load(str(place / "model"))


@pytest.fixture
def store(place: Path, tmp_path: Path) -> Store:
    """The store again, in a folder of its own, for labels to be added."""
    return copied(place / "store", tmp_path / "store")


def copied(store: Path, to: Path) -> Store:
    to.mkdir()
    for path in store.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return Store(to)


def settings() -> TrainConfig:
    return TrainConfig(steps=20, batch=64, lr=3e-3, log_every=5)


def by_transformers(lm: LanguageModel, store: Store) -> list[torch.Tensor]:
    """Surprisal of every token, window by window, from the model's own log-probabilities in float64."""
    found = []
    for number in range(len(store.shards)):
        shard = store.read(number)
        labels = torch.full(shard.tokens.shape, torch.nan, dtype=torch.float64)
        for window, tokens in enumerate(shard.tokens.long()):
            log_p = lm.plain(tokens[None]).logits[0].double().log_softmax(-1)
            for column in range(1, len(tokens)):
                if shard.documents[window, column] != NOWHERE:
                    labels[window, column] = -log_p[column - 1, tokens[column]]
        found.append(labels)
    return found


def test_surprisal_is_minus_the_log_probability_of_the_token_itself():
    logits = torch.tensor([[[0.0, 0.0], [1.0, 3.0], [9.0, 9.0]]])
    found = surprisal(logits, torch.tensor([[1, 0, 0]]))
    assert found[0, 0].isnan()
    assert_close(found[0, 1], torch.tensor(2.0).log())
    assert_close(found[0, 2], torch.tensor(1 + torch.e**2).log())
    assert surprisal(torch.zeros(2, 1, 5), torch.zeros(2, 1, dtype=torch.long)).isnan().all()
    assert surprisal(torch.tensor([[[0.0, -torch.inf]] * 2]), torch.tensor([[0, 1]])).isnan().all()


@pytest.mark.parametrize("packing", ["concat", "document"])
def test_a_harvest_keeps_the_surprise_of_every_token(
    lm: LanguageModel, place: Path, tmp_path: Path, packing: str
):
    how = PackingConfig(context=16, packing=packing)
    text = place / "text.jsonl"
    made = harvest(lm, tmp_path / "a", config(text, labels="surprise", packing=how))
    other = harvest(lm, tmp_path / "b", config(text, labels="surprise", packing=how, batch_tokens=16))
    plain = harvest(lm, tmp_path / "plain", config(text, packing=how))
    index = json.loads((made.path / "index.json").read_text())
    assert (index["format"], index["labels"], index["labels_per"]) == (2, "surprise", "token")
    for number, wanted in enumerate(by_transformers(lm, made)):
        shard = made.read(number, (tiny.HOOK,))
        assert shard.labels.dtype == torch.float32
        assert_close(shard.labels.double(), wanted, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert_close(other.read(number).labels, shard.labels, equal_nan=True, rtol=1e-4, atol=1e-4)
        assert torch.equal(
            plain.read(number, (tiny.HOOK,)).activations[tiny.HOOK], shard.activations[tiny.HOOK]
        )


def test_a_stopped_harvest_ends_with_the_same_surprise(lm: LanguageModel, place: Path, tmp_path: Path):
    how = config(place / "text.jsonl", labels="surprise")
    whole = harvest(lm, tmp_path / "whole", how)
    interrupted(lm, tmp_path / "store", how, after=1200)
    assert contents(harvest(lm, tmp_path / "store", how).path) == contents(whole.path)


def test_surprise_added_later_is_the_harvests(lm: LanguageModel, place: Path, store: Store):
    fingerprint, before = store.fingerprint, contents(store.path)
    added = label(store, "surprise", batch=48)
    for number, wanted in enumerate(by_transformers(lm, store)):
        assert_close(added.read(number).double(), wanted, equal_nan=True, rtol=1e-4, atol=1e-4)
    assert Store(store.path).fingerprint == fingerprint
    assert {name: before[name] for name in before} == {n: (store.path / n).read_bytes() for n in before}


@pytest.mark.parametrize("batch", [7, 2048])
def test_needed_is_the_l0_of_the_runs_code_on_each_row(place: Path, store: Store, batch: int):
    added, sae = label(store, f"needed:{place / 'batchtopk'}", batch=batch), Run(place / "batchtopk").sae()
    for number in range(len(store.shards)):
        shard = store.read(number, (tiny.HOOK,))
        dense = sae.encode(shard.activations[tiny.HOOK].float()).dense()
        wanted = (dense != 0).sum(1).view(shard.tokens.shape).float()
        assert torch.equal(added.read(number)[shard.documents != NOWHERE], wanted[shard.documents != NOWHERE])
        assert added.read(number)[shard.documents == NOWHERE].isnan().all()


@pytest.mark.parametrize("memory", [1, 4 << 30])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_batch_brings_each_rows_own_label(place: Path, store: Store, memory: int, positions: str):
    label(store, f"needed:{place / 'batchtopk'}")
    sae = Run(place / "batchtopk").sae()
    reader = ShuffledReader(store, tiny.HOOK, 16, labels=True, positions=positions, memory=memory)
    for batch in islice(iter(reader), 2 * reader.rows // 16):
        assert torch.equal(batch.labels, sae.encode(batch.x).l0().float())


def test_an_interrupted_labelling_goes_on_and_ends_with_the_same_bytes(
    place: Path, store: Store, tmp_path: Path
):
    source = f"needed:{place / 'batchtopk'}"
    other = copied(store.path, tmp_path / "other")
    whole = label(other, source)
    done = []

    @contextmanager
    def progress(stage: str, total: int, unit: str, already: int = 0):
        def stop(tokens: int, note: str = "") -> None:
            done.append(tokens)
            if len(done) == 2:
                raise KeyboardInterrupt

        yield stop

    with pytest.raises(KeyboardInterrupt):
        label(store, source, progress=progress)
    with pytest.raises(StoreError, match="sae store label"):
        choose(store, None)
    first = (store.path / "labels/needed" / "shard-00000.safetensors").stat().st_mtime_ns
    added = label(store, source)
    assert contents(added.path) == contents(whole.path)
    assert (added.path / "shard-00000.safetensors").stat().st_mtime_ns == first
    assert label(store, source).digest == whole.digest


def test_a_labelling_killed_after_its_index_leaves_nothing_once_it_is_called_again(place: Path, store: Store):
    made = label(store, f"needed:{place / 'batchtopk'}")
    whole = contents(made.path)
    for left in (token_labels.JOB, files.LOCK):
        (made.path / left).touch()
    assert contents(label(store, f"needed:{place / 'batchtopk'}").path) == whole


def test_an_interrupted_labelling_by_another_run_is_not_gone_on_with(place: Path, store: Store):
    begun = store.path / "labels/needed"
    begun.mkdir(parents=True)
    (begun / "shard-00000.safetensors").write_bytes(b"of something else")
    added = label(store, f"needed:{place / 'batchtopk'}")
    assert added.read(0).shape == store.read(0).tokens.shape


def test_damaged_labels_are_seen(place: Path, store: Store):
    added = label(store, f"needed:{place / 'batchtopk'}")
    path = added.path / "shard-00001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    faults = [name for name, fault in token_labels.verify(store) if fault]
    assert faults == ["labels/needed/shard-00001.safetensors"]
    with pytest.raises(StoreError, match=r"damaged.*labels/needed.*sae store label .* --labels needed:"):
        LabelSet(store, "needed").read(1)


def refused(
    kind: type[WorkbenchError], store: Store, source: str, *parts: str, name: str | None = None
) -> None:
    with pytest.raises(kind) as caught:
        label(store, source, name)
    line = str(caught.value)
    assert "\n" not in line
    assert all(part in line for part in parts), line
    assert not (store.path / "labels").exists()


def test_what_cannot_label_a_store_is_refused(place: Path, store: Store, tmp_path: Path):
    refused(RunError, store, f"needed:{place / 'topk'}", "4 latents", "batchtopk")
    refused(RunError, store, "needed:nosuch", "nosuch", "sae train")
    refused(LabelError, store, "builtin", "needed:RUN", "sae harvest --labels")
    refused(LabelError, store, "needed:", "needed:RUN")
    refused(StoreError, store, f"needed:{place / 'batchtopk'}", "../x", name="../x")
    tiny.text_file(tmp_path / "text.jsonl")
    other = harvest(
        load(str(place / "model")),
        tmp_path / "other",
        config(tmp_path / "text.jsonl", hooks="blocks.0.hook_resid_pre"),
    )
    refused(RunError, other, f"needed:{place / 'batchtopk'}", tiny.HOOK, "blocks.0.hook_resid_pre")


def test_a_taken_name_is_refused_and_a_second_name_has_to_be_chosen(place: Path, store: Store):
    label(store, f"needed:{place / 'batchtopk'}")
    with pytest.raises(StoreError, match="--name"):
        label(store, "surprise", "needed")
    label(store, "surprise")
    with pytest.raises(StoreError, match="--labels: needed, surprise"):
        choose(store, None)
    assert choose(store, "surprise").source == "surprise"
    with pytest.raises(StoreError, match="'nosuch'.*needed, surprise"):
        choose(store, "nosuch")


def test_adaptivek_reads_labels_in_their_own_unit_and_resumes_with_the_same_ones(place: Path, store: Store):
    label(store, f"needed:{place / 'batchtopk'}")
    arch = AdaptiveKConfig(d_sae=32, k_min=1, k_max=12)
    cfg = RunConfig(store=str(store.path), arch=arch, train=settings())
    run = train(cfg, store.path.parent / "run")
    assert run.config.labels == "needed"
    assert run.config.arch.labels_in == "latents"
    sae, shard = run.sae(), store.read(0, (tiny.HOOK,))
    x, labels = shard.activations[tiny.HOOK][store.rows(shard)].float(), choose(store, None).read(0)
    k = sae.k_of(sae.score(x)).float()
    assert torch.corrcoef(torch.stack([k, labels[store.rows(shard)]]))[0, 1] > 0.3
    plain = RunConfig(
        store=str(store.path), arch=TopKConfig(d_sae=32, k=4), train=settings(), labels="needed"
    )
    with pytest.raises(ConfigError, match="topk reads no labels"):
        train(plain, store.path.parent / "plain")


@pytest.mark.parametrize(("k_min", "k_max"), [(4, 100), (1, 2), (1, 12), (20, 320), (5, 5)])
def test_a_label_of_latents_gives_that_number_of_latents_within_the_limits(k_min: int, k_max: int):
    sae = build(AdaptiveKConfig(d_sae=400, k_min=k_min, k_max=k_max, labels_in="latents"), 4)
    counts = torch.arange(400.0)
    scores = sae.scores_of(counts)
    assert sae.k_of(scores).tolist() == counts.clamp(k_min, k_max).tolist()
    lowest, highest = sae.score_range
    assert lowest <= scores.min() <= scores.max() <= highest
    assert sae.scores_of(torch.tensor([torch.nan])).isnan().all()


def test_a_label_of_nats_grows_to_the_highest_score_at_ten():
    sae = build(AdaptiveKConfig(d_sae=400, k_min=4, k_max=100, score_max=5.0, labels_in="nats"), 4)
    assert_close(sae.scores_of(torch.tensor([0.0, 5.0, 10.0, 30.0])), torch.tensor([0.0, 2.5, 5.0, 5.0]))


def test_every_source_has_its_unit():
    sources = {"surprise": "nats", "needed:runs/a": "latents", "builtin": "score", "column:x": "score"}
    assert {source: unit_of(source) for source in sources} == sources
