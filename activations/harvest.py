"""Text -> activations at hook points -> store, on one rank or many. An interrupted harvest resumes when called again."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch

from activations import demo_assets, hook_check, text
from activations.activation_source import Rows, make_store
from activations.capture import ShardBuffer
from activations.chat import ChatTemplate
from activations.document_labels import SURPRISE, Labels, per_token
from activations.documents import Conversation
from activations.errors import HarvestError
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.store import INDEX, JOB, Store, StoreSpec, read_json, spec_of
from activations.text import Counted, TextConfig
from activations.tokens import NOWHERE, PackingConfig, Window, first_token, tokenizer_hash, windows
from activations.vocabulary import SpelledText

log = logging.getLogger(__name__)
GPU_WRITERS = 4  # shards written at once: a GPU makes them faster than one thread can hash and write them


@dataclass(frozen=True)
class HarvestConfig:
    """Settings of a harvest: the hook points, the text, and the format in which activations are stored."""

    hooks: str = ""
    """Hook points, separated by commas, such as `blocks.10.hook_resid_post,blocks.14.hook_mlp_out`. When left out on the
    command line: the residual stream after block 10 of the embedded model, or after another model's middle block."""
    tokens: int = 1_000_000
    """Tokens to run the model on, BOS included; fewer when the text ends earlier."""
    dtype: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """How activations are stored. float16 takes half the disk and holds numbers up to 65504; bfloat16 has the range of
    float32 but only 8 bits of precision, too few for dimensions whose mean is far from zero; int8 has a scale for every 32
    numbers of a row and takes little more than a quarter of the disk."""
    text: TextConfig = field(default_factory=TextConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    labels: str | None = None
    """Labels that AdaptiveK learns from, stored with the rows. One per token: `surprise`, the model's own loss on the token
    in nats, from the same forward pass, which then runs to the logits. One per document, shared by all its tokens:
    `builtin` (how complex the text is, 0 to 10, by a formula), `column:NAME` (a numeric column of the data set), or
    `module:function` (yours, text -> number). A document whose function fails or returns NaN has no label; one of more
    than 2^20 characters has the label of the first 2^20. `needed:RUN`, per token the number of latents that a trained run
    spends on it, is computed once the store is finished, as `sae store label` does."""
    shard_tokens: int = 32_768
    """Tokens per shard: the most that a crash can cost, and the unit of shuffling."""
    batch_tokens: int = 2048
    """Tokens that the model reads at once."""

    def __post_init__(self) -> None:
        if len(set(self.hook_names)) < len(self.hook_names):
            raise HarvestError(f"hooks = {self.hooks} names a hook point twice")
        if self.tokens < self.packing.context:
            raise HarvestError(
                f"tokens = {self.tokens} does not fill one window of {self.packing.context} tokens"
            )

    @property
    def hook_names(self) -> list[str]:
        """The hook points as a list."""
        return [name.strip() for name in self.hooks.split(",") if name.strip()]


def harvest(
    model: LanguageModel, out: Path, config: HarvestConfig, advance: Callable[[int], None] = lambda n: None
) -> Store:
    """Fill the folder `out` with a store and return it, or finish a harvest that was interrupted.

    Each shard is checked, hashed and written in the background while the model runs on the next. `advance` is called after
    every batch with its number of tokens. Interrupted at any moment and called again with the same arguments, it ends
    with the same bytes as an undisturbed harvest (on the same machine with the same number of threads). A finished store
    with the same settings is returned as it is.

    Within `ranks.group()` every rank calls this with the same arguments, makes the shards whose number modulo the number of
    ranks is its own, and returns the store when all shards are written. The bytes do not depend on the number of ranks,
    which may change when an interrupted harvest resumes.

    Before anything is written, the hook points are compared with the model's own activations on a first window
    (`hook_check.check`). Raises HarvestError, StoreError, TextError, LabelError, HookError or ModelError; BusyError when
    another process harvests into the folder, RankError when another rank died, OSError when the disk is full. Whole shards
    stay in every case."""
    with ranks.peer_errors():  # ranks that run one model together notice within its pass when one dies
        source = ModelSource(model, config)
        store = make_store(source, out, advance)
    if (texts := source.texts) and texts.empty and not ranks.rank():
        log.info("%d of %d documents read are empty and left out", texts.empty, texts.read)
    return store


class ModelSource:
    """The activations of a language model that reads a text (`activation_source.ActivationSource`).

    Raises HarvestError when no hook point is given, and what `store_spec` raises. `writers` are the shards that may wait to
    be written; when left out, as many as the model's device needs."""

    _labels: Labels
    """Those of the documents of the present pass over the text."""
    texts: Counted | None = None
    """The documents of that pass, as counted; None before the first."""

    def __init__(self, model: LanguageModel, config: HarvestConfig, writers: int | None = None):
        if not config.hook_names:
            raise HarvestError(
                "no hook point given, at least one is needed, such as blocks.3.hook_resid_post"
            )
        self._model, self._config = model, config
        self.spec, self.tokens = store_spec(model, config), config.tokens
        self.in_step = model.in_step
        self.may_change = text.is_of_files(config.text)
        self.writers = writers or (GPU_WRITERS if model.device.type == "cuda" else 1)
        # One more than may wait to be written, so that one is always free
        size = self.spec.windows_per_shard, config.packing.context
        surprise = config.labels == SURPRISE
        self._buffers = cycle([ShardBuffer(*size, surprise) for _ in range(self.writers + 1)])

    def blocks(self) -> Iterator[list[Window]]:
        """Read and tokenise the text from its beginning; yield the windows of one shard after the other."""
        config, model = self._config, self._model
        self._labels = Labels(config.labels, config.text)
        self.texts = Counted(self._labels.documents())
        spelled = SpelledText(self.texts, model.vocabulary, config.text.dataset)
        stream = windows(spelled, model.tokenizer, config.packing, model.vocabulary.rows)
        return self._blocks(islice(stream, config.tokens // config.packing.context))

    def _blocks(self, stream: Iterator[Window]) -> Iterator[list[Window]]:
        while block := list(islice(stream, self.spec.windows_per_shard)):
            yield block

    def check(self, block: list[Window]) -> None:
        """Compare the hook points with the model's own activations on the window with the most text (`hook_check.check`)."""
        hook_check.check(self._model, _text_of(block), self._config.hook_names)

    def rows(self, block: list[Window], advance: Callable[[int], None]) -> Callable[[], Rows]:
        """Run the model on a block. The next `writers` blocks do not touch what is returned."""
        buffer, config = next(self._buffers), self._config
        buffer.fill(self._model, block, config.hook_names, config.batch_tokens, advance)
        labels = self._labels.of(block)

        def collect() -> Rows:
            activations, surprisals = buffer.collect()
            return Rows(activations, labels if surprisals is None else surprisals)

        return collect

    def skip(self, block: list[Window]) -> None:
        """Drop the labels of the block's documents, which wait for their rows."""
        self._labels.skip(block)

    def empty(self) -> HarvestError:
        """Return the error for a text that is too short for a single window."""
        return HarvestError(
            f"{self._config.text.dataset} fills no window of {self._config.packing.context} tokens: use more text, a smaller "
            f"--context, or --packing document"
        )


def _text_of(block: list[Window]) -> torch.Tensor:
    """Return the token ids [1, T] of the window with the most text, without the padding at its end."""
    lengths = [int((window.documents != NOWHERE).sum()) for window in block]
    longest = block[lengths.index(max(lengths))]
    end = 1 + int((longest.documents != NOWHERE).nonzero()[0].max())
    return torch.from_numpy(longest.tokens[:end])[None]


def with_hooks(model: LanguageModel, config: HarvestConfig) -> HarvestConfig:
    """Return the configuration with hook points: its own, or the embedded model's, or the residual stream after the middle block."""
    if config.hook_names:
        return config
    middle = f"blocks.{(model.n_layers - 1) // 2}.hook_resid_post"
    return dataclasses.replace(config, hooks=demo_assets.MODEL_HOOK if model.name == "embedded" else middle)


def store_spec(model: LanguageModel, config: HarvestConfig) -> StoreSpec:
    """Return the description of the store that this model and configuration make.

    Raises HookError for a hook point that is unknown or does not have one row per token, HarvestError for windows longer
    than the model can read."""
    if model.longest is not None and config.packing.context > model.longest:
        raise HarvestError(
            f"context is {config.packing.context}, but {model.name} reads at most {model.longest} tokens"
        )
    # 13 tokens: hardly any model has as many heads, so that an attention pattern cannot pass for one row per token
    probe = torch.zeros(1, min(13, config.packing.context), dtype=torch.long)
    captured = model.capture(probe, config.hook_names)
    return StoreSpec(
        model=model.name,
        model_revision=model.revision,
        weights_sha256=model.weights_hash,
        tokenizer_sha256=tokenizer_hash(model.tokenizer),
        dataset=text.described(config.text),
        dataset_revision=text.revision(config.text),
        packing=config.packing,
        bos_token=next(iter(first_token(model.tokenizer, config.packing)), None),
        hooks={hook: captured[hook].shape[-1] for hook in config.hook_names},
        dtype=config.dtype,
        windows_per_shard=max(1, config.shard_tokens // config.packing.context),
        labels=config.labels,
        labels_per="token" if per_token(config.labels) else "document",
        model_dtype=str(model.plain.dtype).removeprefix("torch."),
        chat_template_sha256=_template_hash(model, config.text),
        source=model.engine,
    )


def begun_in(out: Path, dtype: str) -> str:
    """Return the precision to load the model in for a harvest into `out`: `dtype`, or for `auto` that of what is there.

    A harvest has to end in the precision in which it began, whatever another measurement would choose. Within
    `ranks.group()` every rank calls this. Raises StoreError for a file that cannot be read."""
    for path in (out / INDEX, out / JOB):
        if dtype == "auto" and path.exists():
            with suppress(TypeError):  # a damaged record is refused with the harvest's other settings
                dtype = spec_of(read_json(path)).model_dtype
    return ranks.from_first(dtype)  # rank 0 may already have written its record when another looks for it


def _template_hash(model: LanguageModel, config: TextConfig) -> str | None:
    if config.dataset == "embedded" or not isinstance(next(text.documents(config), None), Conversation):
        return None
    return ChatTemplate(model.tokenizer).sha256
