"""A toy world for tests: a two-layer random model, a byte tokenizer, a text, a store and a finished run."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from activations.disk import files
from activations.harvest import HarvestConfig, harvest
from activations.language_model import LanguageModel, load
from activations.progress import Advance
from activations.store import Store
from activations.text import TextConfig
from activations.token_text import TokenText, named_bytes
from activations.tokens import PackingConfig
from sae.architectures import ArchConfig, TopKConfig
from sae.config import RunConfig, TrainConfig
from sae.features.collect import FeaturesConfig
from sae.features.feature import FeatureStore
from sae.features.folder import SPELLINGS, VOCABULARY
from sae.runs.run import Run
from sae.training.trainer import Trainer, fitting
from sae.workflows import training
from sae.workflows.evaluate import evaluate
from sae.workflows.features import collect_features
from sae.workflows.train import train

HOOK = "blocks.1.hook_resid_pre"
WORDS = "the cat sat on a mat and <b>looked</b> at naïve birds while rain fell & wind blew".split()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and <bos>, <eos>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<bos>", "<eos>", *alphabet])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<bos>", eos_token="<eos>")


def model_folder(path: Path) -> Path:
    """Save the model as `from_pretrained` reads it. Its <bos> has id 0, as Pythia's has."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def text_file(path: Path, documents: int = 40, words: int = 30, seed: int = 0) -> Path:
    """JSON lines with a `text` column; every seventh document is empty."""
    rng = random.Random(seed)
    rows = [" ".join(rng.choices(WORDS, k=words)) if number % 7 else "" for number in range(documents)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return path


def harvest_config(text: Path, **changes) -> HarvestConfig:
    """Small windows and shards over a text file."""
    settings = {
        "hooks": HOOK,
        "tokens": 4000,
        "text": TextConfig(dataset=str(text)),
        "packing": PackingConfig(context=16),
        "shard_tokens": 512,
        "batch_tokens": 128,
    }
    return HarvestConfig(**{**settings, **changes})


def sealed_again(features: Path) -> None:
    """Let a features folder that was changed by hand name the bytes it has now."""
    about = files.read_json(features / "features.json")
    digests = {name: files.sha256(features / name) for name in about["sha256"]}
    files.write_sealed(features / "features.json", {**about, "sha256": digests})


def respelled(features: Path, change: Callable[[str], str]) -> None:
    """Let every token of a features folder read otherwise, as if another tokenizer had made it."""
    names = [change(name) for name in FeatureStore(features).vocabulary]
    (features / VOCABULARY).write_text(json.dumps(names))
    spelled = TokenText([named_bytes(name) for name in names], special=[0, 1])
    files.write_tensors(features / SPELLINGS, spelled.to_tensors(), "sae-token-text-1")
    sealed_again(features)


def fitting_by_steps(trainer: Trainer, batches: Iterator, **others: Any) -> Iterator[None]:
    """`fitting` with a clock on which each step takes a second, so that checkpoints come after known steps."""
    return fitting(trainer, batches, clock=lambda: float(trainer.step), **others)


def train_until(cfg: RunConfig, out: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train, and fail after a checkpoint at step `step`, as a process does that is killed there."""

    class Enough(Exception):
        pass

    def fit_some(trainer, batches, *, log, save, stop):
        yield from fitting(trainer, batches, log=log, save=save, stop=lambda: trainer.step == step)
        raise Enough

    with monkeypatch.context() as patch:
        patch.setattr(training, "fitting", fit_some)
        with pytest.raises(Enough):
            train(cfg, out)


def store(folder: Path, model: LanguageModel | None = None, **changes) -> Store:
    """Harvest a store into folder/store, from a model in folder/model over folder/text.jsonl."""
    text = text_file(folder / "text.jsonl")
    model = model or load(str(model_folder(folder / "model")))
    return harvest(model, folder / "store", harvest_config(text, **changes))


def run(
    folder: Path, name: str = "toy", arch: ArchConfig | None = None, steps: int = 30, out: Path | None = None
) -> Run:
    """A trained, evaluated run with features at folder/runs/name, or in `out`, over a store in `folder`."""
    if not (folder / "store").exists():
        store(folder)
    arch = arch or TopKConfig(d_sae=32, k=4)
    cfg = TrainConfig(steps=steps, batch=64, lr=3e-3, log_every=5, checkpoint_minutes=1 / 6)
    out = out or folder / "runs" / name
    made = train(RunConfig(store=str(folder / "store"), arch=arch, train=cfg), out)
    model = load(str(folder / "model"))
    evaluate(made, made.sae(), model, windows=8, batch=64)
    collect_features(made, model, FeaturesConfig(strongest=4, sampled=10, neighbours=3, logits=3, batch=64))
    return made


class Told:
    """A Progress that keeps what it hears, of one stage or of several; it raises KeyboardInterrupt beyond a share of a stage."""

    def __init__(self, end_at: float = float("inf")):
        self.end_at = end_at
        self.totals: dict[str, int] = {}
        self.steps: dict[str, list[int]] = {}
        self.notes: list[str] = []

    @contextmanager
    def __call__(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Advance]:
        steps = self.steps.setdefault(stage, [done])
        self.totals[stage] = total

        def advance(n: int, note: str = "") -> None:
            steps.append(n)
            self.notes.append(note)
            if sum(steps) > self.end_at * total:
                raise KeyboardInterrupt

        yield advance
