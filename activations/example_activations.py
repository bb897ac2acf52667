"""One activation for each of many short texts, such as its last token's: computed once and kept in a folder."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from torch import Tensor

from activations.capture import batches
from activations.demo_assets import cache_folder
from activations.disk import files
from activations.disk.schema import parse
from activations.errors import StoreError, TextError, quoted
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress

FORMAT = 1
INDEX = "index.json"
BATCH_TOKENS = 4096  # tokens that the model reads at once
SHARD_TEXTS = 2048  # texts whose activations are written at once: what a kill can lose
Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class Examples:
    """How texts become activations: what a folder of them records."""

    model: str
    weights_sha256: str
    """Hash of the language model's weights."""
    model_dtype: str
    """Precision that the model computes in."""
    hook: str
    first: list[int]
    """Token ids that are put before every text, such as the BOS."""
    context: int = 128
    """Tokens that the model reads of a text, `first` included: the last ones, where a text has more."""
    pooling: Pooling | Literal["mean behind the first"] = "last"
    """`last` takes the activation of the text's last token, `mean` the mean over its tokens, without `first`. `mean behind the
    first` leaves out the first token too where `first` is empty, as `without_sink` does."""

    def folder(self) -> Path:
        """Return the folder in the user's cache where they are kept."""
        named = "\n".join(f"{name}={value}" for name, value in sorted(vars(self).items()))
        return cache_folder() / "examples" / hashlib.sha256(named.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ShardRecord:
    """One file of a folder of example activations."""

    name: str
    sha256: str
    texts: list[str]
    """SHA-256 of each row's text."""


@dataclass(frozen=True)
class IndexRecord:
    """The content of index.json."""

    format: int
    examples: Examples
    shards: list[ShardRecord]


def token_ids(model: LanguageModel, text: str, first: Sequence[int], context: int) -> list[int]:
    """Return what the model reads of a text: `first`, and the last tokens of the text that fit into the context.

    sae-probes cuts long texts at their beginning too. Raises TextError for a text without tokens."""
    ids = model.vocabulary.encode(text.encode("utf-8", "replace").decode())
    if not ids:
        raise TextError(f"the text {text[:40]!r} has no token")
    return [*first, *ids[-(context - len(first)) :]]


def run_examples(
    model: LanguageModel, hook: str, ids: Sequence[Sequence[int]], first: int
) -> Iterator[tuple[list[int], Float[Tensor, "n T D"], Bool[Tensor, "n T"]]]:
    """Yield batches of texts of similar length: their places in `ids`, their activations, and which positions are text.

    A text's first `first` tokens and the padding behind a shorter text do not count as text."""
    order = sorted(range(len(ids)), key=lambda place: -len(ids[place]))
    lengths = [len(ids[place]) for place in order]
    for start, stop, longest in batches(lengths, BATCH_TOKENS):
        places = order[start:stop]
        # Padding is on the right, where no position of a causal model sees it
        tokens = torch.tensor(
            [[*ids[place], *[ids[place][-1]] * (longest - len(ids[place]))] for place in places]
        )
        x = model.capture(tokens, [hook])[hook].float().cpu()
        column = torch.arange(longest)
        yield places, x, (column >= first) & (column < torch.tensor(lengths[start:stop])[:, None])


def without_sink(is_text: Bool[Tensor, "n T"], first: int) -> Bool[Tensor, "n T"]:
    """Return a mask of `run_examples` without the first position, where nothing (`first` = 0) is put before the texts.

    Whatever token is there is the attention sink then, whose activation is many times as long as others and says nothing of the
    text. A text of a single token keeps it."""
    if first:
        return is_text
    rest = is_text.clone()
    rest[:, 0] = is_text.sum(1) == 1
    return rest


class ExampleActivations:
    """A folder with one activation per text, found by the text's SHA-256. It grows; nothing in it is ever changed.

    Raises StoreError when its index is damaged or of a newer format."""

    def __init__(self, examples: Examples, path: Path | None = None):
        self.examples, self.path = examples, path or examples.folder()
        self._fix = f"rm -r {quoted(self.path)}"
        self._read()

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return those of the texts whose activations are not there yet, each once, in order."""
        return [text for text in dict.fromkeys(texts) if _digest(text) not in self._place]

    def of(self, texts: Sequence[str]) -> Float[Tensor, "n D"]:
        """Return the activations of texts, float32. Raises KeyError for a missing one, StoreError for a damaged file."""
        places = [self._place[_digest(text)] for text in texts]
        rows: dict[int, Tensor] = {n: self._shard(n) for n in sorted({n for n, _ in places})}
        return torch.stack([rows[n][row] for n, row in places]).float()

    def fill(self, model: LanguageModel, texts: Sequence[str], progress: Progress = no_progress) -> None:
        """Run the model on the texts that are missing. What is finished stays when it is interrupted.

        Raises BusyError when another process is filling the same folder, TextError for a text without tokens."""
        if not self.missing(texts):
            return
        with files.alone_in(self.path):
            files.sweep(self.path)
            self._read()  # another process may have added some since
            new = self.missing(texts)
            first, context = self.examples.first, self.examples.context
            ids = [token_ids(model, text, first, context) for text in new]
            with progress("examples", sum(map(len, ids)), "tokens") as advance:
                for start in range(0, len(new), SHARD_TEXTS):
                    some = slice(start, start + SHARD_TEXTS)
                    self._add(new[some], self._run(model, ids[some], advance))

    def _run(
        self, model: LanguageModel, ids: Sequence[Sequence[int]], advance: Callable[[int], None]
    ) -> Float[Tensor, "n D"]:
        out: Tensor | None = None
        for places, x, is_text in run_examples(model, self.examples.hook, ids, len(self.examples.first)):
            if self.examples.pooling == "last":
                pooled = x[torch.arange(len(x)), is_text.int().cumsum(1).argmax(1)]
            else:
                behind_first = self.examples.pooling == "mean behind the first"
                read = without_sink(is_text, len(self.examples.first)) if behind_first else is_text
                pooled = (x * read[..., None]).sum(1) / read.sum(1, keepdim=True)
            out = x.new_empty(len(ids), x.shape[-1]) if out is None else out
            out[places] = pooled
            advance(sum(len(ids[place]) for place in places))
        assert out is not None
        return out

    def _add(self, texts: Sequence[str], x: Tensor) -> None:
        name = f"shard-{len(self._shards):05d}.safetensors"
        files.write_tensors(self.path / name, {"activations": x}, f"sae-examples-{FORMAT}")
        digests = [_digest(text) for text in texts]
        self._shards.append(ShardRecord(name, files.sha256(self.path / name), digests))
        content = {
            "format": FORMAT,
            "examples": vars(self.examples),
            "shards": [vars(shard) for shard in self._shards],
        }
        files.write_sealed(self.path / INDEX, content)
        self._place |= {digest: (len(self._shards) - 1, row) for row, digest in enumerate(digests)}

    def _read(self) -> None:
        self._shards: list[ShardRecord] = []
        if (self.path / INDEX).exists():
            try:
                content: Mapping[str, object] = files.read_json(self.path / INDEX)
                record = parse(IndexRecord, content)
            except (ValueError, OSError, TypeError) as error:
                raise StoreError(f"{self.path / INDEX} is damaged: {error}", fix=self._fix) from error
            if record.format > FORMAT:
                raise StoreError(
                    f"{self.path} is of examples format {record.format}, this release reads up to {FORMAT}"
                )
            self._shards = record.shards
        self._place = {
            digest: (number, row)
            for number, shard in enumerate(self._shards)
            for row, digest in enumerate(shard.texts)
        }
        self._shard = lru_cache(maxsize=16)(self._load)

    def _load(self, number: int) -> Tensor:
        shard = self._shards[number]
        path = self.path / shard.name
        try:
            if files.sha256(files.plain(path)) != shard.sha256:
                raise StoreError(
                    f"{path} is damaged: its bytes are not the ones {INDEX} names", fix=self._fix
                )
            return files.read_tensors(path)["activations"]
        except (OSError, SafetensorError, KeyError) as error:
            raise StoreError(f"{path} cannot be read: {error}", fix=self._fix) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
