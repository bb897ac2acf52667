"""Windows -> activations at hook points -> store, by one rank or many; after a stop, the same call goes on where it was."""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch

from activations import hook_check, text
from activations.capture import Room
from activations.chat import ChatTemplate
from activations.disk import files, locks
from activations.document_labels import SURPRISE, Labels, per_token
from activations.documents import Conversation
from activations.errors import HarvestError
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.parallel.threads import Behind, ahead
from activations.store import DTYPES, INDEX, Store, StoreSpec
from activations.store_writer import StoreWriter, clear_unfinished
from activations.text import Counted, TextConfig
from activations.tokens import NOWHERE, PackingConfig, Window, first_token, tokenizer_hash, windows
from activations.vocabulary import SpelledText

log = logging.getLogger(__name__)
GPU_WRITERS = 4  # shards written at once: a GPU makes them faster than one thread hashes and writes


@dataclass(frozen=True)
class HarvestConfig:
    """What to harvest, from which text, into what."""

    hooks: str = ""
    """Hook points, separated by commas, such as `blocks.10.hook_resid_post,blocks.14.hook_mlp_out`; at the command
    line, the residual stream after block 10 of the embedded model, or a model's middle block, when left out."""
    tokens: int = 1_000_000
    """Tokens to run the model on, BOS included; fewer when the text ends before."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How activations are stored. float16 halves the disk and holds up to 65504; bfloat16 holds all ranges but
    only 8 bits of precision, too few for dimensions whose mean is far from zero."""
    text: TextConfig = field(default_factory=TextConfig)
    packing: PackingConfig = field(default_factory=PackingConfig)
    labels: str | None = None
    """Numbers that AdaptiveK learns from, kept with the rows. For each token: `surprise`, the model's own loss on it in
    nats, in the same pass, which then runs to the logits. One number for a whole document, shared by all its tokens:
    `builtin` (how complex the text is, 0 to 10, by a formula), `column:NAME` (a numeric column of the data set), or
    `module:function` (yours, text -> number). A document whose function fails or gives NaN has no label; one of more
    than 2^20 characters has that of the first 2^20. `needed:RUN`, for each token the number of latents that a trained
    run spends on it, is made as soon as the store is there, as `sae store label` does."""
    shard_tokens: int = 32_768
    """Tokens per shard: what a crash can cost, and the unit of shuffling."""
    batch_tokens: int = 2048
    """Tokens the model reads at once."""

    def __post_init__(self) -> None:
        if len(set(self.hook_names)) < len(self.hook_names):
            raise HarvestError(f"a hook point is given twice in {self.hooks}")
        if self.tokens < self.packing.context:
            raise HarvestError(
                f"tokens = {self.tokens} does not fill one window of {self.packing.context} tokens"
            )

    @property
    def hook_names(self) -> list[str]:
        """The hook points as a list."""
        return [name.strip() for name in self.hooks.split(",") if name.strip()]


def harvest(
    model: LanguageModel, out: Path, config: HarvestConfig, on_tokens: Callable[[int], None] = lambda n: None
) -> Store:
    """Fill the folder `out` with a store and return it; finish one that was interrupted.

    A shard is checked, hashed and written in the background while the model runs on the next. `on_tokens` hears
    of every batch done, as a number of tokens. Interrupted at any moment and called again with the same
    arguments, it ends with the same bytes as undisturbed (same machine, same number of threads). A finished
    store of the same settings is returned as it is.

    Within `ranks.group()` every rank calls this with the same arguments, makes the shards whose number modulo
    the ranks' is its own, and gets the store when all are there: the same bytes, whatever the number of ranks,
    which may be another when an interrupted harvest goes on.

    Before anything is written, the hook points are compared with the model's own activations on a first window
    (`hook_check.check`). Raises HarvestError, StoreError, TextError, LabelError, HookError or ModelError, BusyError when another process harvests into
    the folder, RankError when another rank ended, an OSError when the disk is full; in each case whole shards stay."""
    if not config.hook_names:
        raise HarvestError("no hook point given: needed is at least one, such as blocks.3.hook_resid_post")
    spec = store_spec(model, config)
    if (out / INDEX).exists():
        store = _finished(Store(out), spec, config)
        if not ranks.rank():
            clear_unfinished(out)  # a crash may have come between the index and this
            locks.clear(out)
        return store
    _check_space(out, spec, config)
    with ranks.alone_in(out):
        windows_found, shards, texts = _write_shards(model, out, spec, config, on_tokens)
        ranks.barrier()
        with ranks.first_goes_first():
            if ranks.rank() == 0:
                ended = windows_found < config.tokens // config.packing.context
                StoreWriter(out, spec, config.tokens).finish(shards, text_ended=ended)
                if texts.empty:
                    log.info("%d of %d documents read are empty and left out", texts.empty, texts.read)
    return Store(out)


def _write_shards(
    model: LanguageModel, out: Path, spec: StoreSpec, config: HarvestConfig, on_tokens: Callable[[int], None]
) -> tuple[int, int, Counted]:
    """Write this rank's shards; return how many windows, how many shards, and what documents the text makes for all."""
    labels = Labels(config.labels, config.text)
    texts = Counted(labels.documents())
    spelled = SpelledText(texts, model.vocabulary, config.text.dataset)
    stream = windows(spelled, model.tokenizer, config.packing, model.vocabulary.rows)
    blocks = _blocks(islice(stream, config.tokens // config.packing.context), spec.windows_per_shard)
    writers = GPU_WRITERS if model.device.type == "cuda" else 1
    surprise = config.labels == SURPRISE
    rooms = cycle(
        [Room(spec.windows_per_shard, config.packing.context, surprise) for _ in range(writers + 1)]
    )
    writer = None  # until there is something to write: a mistake in the text leaves no folder behind
    total = shards = 0
    with Behind(writers) as behind, closing(ahead(blocks, 1)) as made_ahead:
        for number, block in enumerate(made_ahead):
            if writer is None:
                hook_check.check(model, _text_of(block), config.hook_names)
                with ranks.first_goes_first():
                    writer = StoreWriter(out, spec, config.tokens)
            total, shards = total + len(block), number + 1
            mine = number % ranks.world() == ranks.rank()
            if not mine or writer.has(number):
                if mine:
                    writer.check(number, block)
                labels.skip(block)
                on_tokens(len(block) * config.packing.context)
                continue
            room = next(rooms)  # the one whose shard is written: at most `writers` are under way
            room.fill(model, block, config.hook_names, config.batch_tokens, on_tokens)
            behind.do(_write, writer, number, block, room, labels.of(block))
    if writer is None:
        raise HarvestError(
            f"{config.text.dataset} gave no full window of {config.packing.context} tokens: it is empty or too "
            f"short; needed is more text, a smaller --context, or --packing document"
        )
    return total, shards, texts


def _text_of(block: list[Window]) -> torch.Tensor:
    """Return the token ids [1, T] of the block's first window that has the most text, without its padding."""
    lengths = [int((window.documents != NOWHERE).sum()) for window in block]
    longest = block[lengths.index(max(lengths))]
    return torch.from_numpy(longest.tokens[: 1 + int((longest.documents != NOWHERE).nonzero()[0].max())])[
        None
    ]


def _write(
    writer: StoreWriter, number: int, block: list[Window], room: Room, labels: dict[int, float] | None
) -> None:
    activations, surprisal = room.taken()
    writer.write(number, block, activations, labels if surprisal is None else surprisal)


def store_spec(model: LanguageModel, config: HarvestConfig) -> StoreSpec:
    """What the store of this model and configuration says of itself.

    Raises HookError for a hook point that is unknown or has no row for each token, HarvestError for windows
    longer than the model reads."""
    if model.longest is not None and config.packing.context > model.longest:
        raise HarvestError(
            f"context = {config.packing.context} and {model.name} reads {model.longest} tokens at most"
        )
    # as many tokens as hardly a model has heads: an attention pattern is not to pass for rows of tokens
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
    )


def _template_hash(model: LanguageModel, config: TextConfig) -> str | None:
    if config.dataset == "embedded" or not isinstance(next(text.documents(config), None), Conversation):
        return None
    return ChatTemplate(model.tokenizer).sha256


def _blocks(stream: Iterator[Window], size: int) -> Iterator[list[Window]]:
    while block := list(islice(stream, size)):
        yield block


def _finished(store: Store, spec: StoreSpec, config: HarvestConfig) -> Store:
    if store.spec != spec:
        raise HarvestError(f"{store.path} is a finished store with other settings: choose another --out")
    wanted = config.tokens // config.packing.context
    if store.windows != wanted and not (store.text_ended and store.windows < wanted):
        raise HarvestError(
            f"{store.path} is finished with {store.tokens:,} tokens and {config.tokens:,} are asked for: "
            f"choose another --out, or delete it"
        )
    return store


def _check_space(out: Path, spec: StoreSpec, config: HarvestConfig) -> None:
    """Refuse before hours are spent when the disk cannot hold the whole store."""
    size = config.tokens * sum(spec.hooks.values()) * DTYPES[spec.dtype].itemsize
    there = sum(file.stat().st_size for file in out.glob("shard-*.safetensors"))
    free = files.free_bytes(out)
    if size - there > free:
        raise HarvestError(
            f"{config.tokens:,} tokens take {size / 1e9:.1f} GB and {out} has {free / 1e9:.1f} GB free: "
            f"take fewer --tokens or hooks, --dtype float16, or another disk"
        )
