"""Make a store, from a model or from files, and label every token of one: by the latents that a trained run spends on it, or by the model's surprise."""

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from activations import language_model, token_labels
from activations.activation_source import make_store
from activations.document_labels import NEEDED, SURPRISE, per_token
from activations.errors import LabelError, ModelError, RunError
from activations.from_files import FilesSource
from activations.harvest import HarvestConfig, harvest, with_hooks
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.progress import Progress, no_progress
from activations.shard import Shard
from activations.store import Store
from activations.token_labels import Labeller, LabelSet
from activations.tokens import NOWHERE
from sae.architectures import SAE
from sae.runs.run import Run, device

LEAST_SPREAD = 0.05  # of the labels' standard deviation over their mean: below, they say nothing of a token
TRIED = 4096  # rows that are looked at before anything is made


def label(
    store: Store,
    source: str,
    name: str | None = None,
    batch: int = 2048,
    progress: Progress = no_progress,
) -> LabelSet:
    """Add a set of labels to a store, `surprise` or `needed:RUN`, under a name; without one, the source's first word.

    The store's own files stay as they are, so runs that were trained on it still are its runs. `batch` is the number
    of tokens encoded, or read by the model, at once. Call it again after an interruption to continue. Raises LabelError for another
    source, RunError for a run that does not fit the store or spends as many latents on every token, ModelError where
    the model is not the one the store was harvested with."""
    if not per_token(source) or source == NEEDED:
        raise LabelError(
            f"labels = {source!r} cannot be added to a store, only surprise and needed:RUN can; labels of documents "
            f"(builtin, column:NAME, module:function) come from the text, with `sae harvest --labels`"
        )
    hooks, made_with, labeller = (
        _surprise(store, batch)
        if source == SURPRISE
        else _needed(Run(source.removeprefix(NEEDED)), store, batch)
    )
    with progress("label", store.tokens, "tokens") as advance:
        return token_labels.add(
            store, name or source.partition(":")[0], source, labeller, made_with, hooks, advance
        )


def refuse_other_hook(run: Run, hooks: dict[str, int | None], where: str) -> None:
    """Raise RunError unless the run reads one of these hook points, at their widths as far as they are known."""
    if run.hook not in hooks:
        raise RunError(
            f"{run.path} reads {run.hook}, and {where} has {', '.join(hooks)}: take a run of one of these, "
            f"or harvest {run.hook} too"
        )
    width = hooks[run.hook]
    if width not in (None, run.record.d_model):
        raise RunError(
            f"{run.path} reads {run.hook} of width {run.record.d_model}, and in {where} it has width {width}: "
            f"take a run of the same model"
        )


def needed(sae: SAE, x: Tensor, batch: int = 2048) -> Tensor:
    """Return the L0 of each row's code, [B] float32, for rows [B, D] of raw activations; `batch` are encoded at once."""
    with torch.no_grad():
        counts = [sae.encode(rows.float().to(sae.device)).l0().cpu() for rows in x.split(batch)]
    return torch.cat(counts).float() if counts else torch.zeros(0)


def _needed(run: Run, store: Store, batch: int) -> tuple[tuple[str, ...], dict[str, str], Labeller]:
    refuse_other_hook(run, dict(store.spec.hooks), str(store.path))
    weights = run.record.weights_sha256
    if weights not in (None, store.spec.weights_sha256):
        raise RunError(
            f"{run.path} was trained on activations of {run.record.model}, and {store.path} holds those of other "
            f"weights ({store.spec.model}): take a run that was trained on the same model"
        )
    digest, sae = run.digest, run.sae().to(device())
    shard = store.read(0, (run.hook,))
    counts = needed(sae, shard.activations[run.hook][store.rows(shard)][:TRIED], batch)
    if len(counts) > 1 and counts.std() <= LEAST_SPREAD * counts.mean():
        raise RunError(
            f"{run.path} spends {counts.mean():.3g} latents on every token, give or take {counts.std():.2g}: "
            f"labels that tell tokens apart come from a run of batchtopk or jumprelu"
        )

    def label(shard: Shard) -> Tensor:
        in_text = shard.documents != NOWHERE
        labels = torch.full(in_text.shape, torch.nan)
        labels[in_text] = needed(sae, shard.activations[run.hook][in_text], batch)
        return labels

    return (run.hook,), {"sae_sha256": digest}, label


def _surprise(store: Store, batch: int) -> tuple[tuple[str, ...], dict[str, str], Labeller]:
    spec = store.spec
    if spec.source == "files":
        raise LabelError(
            f"{store.path} was made from another program's files of {spec.model}, so that no language model can say how "
            f"surprising a token is: take --labels needed:RUN"
        )
    model = language_model.load(spec.model, spec.model_revision, spec.model_dtype, str(device()))
    if model.weights_hash != spec.weights_sha256:
        raise ModelError(
            f"{model.name} has other weights than when {store.path} was harvested: restore it, or harvest again"
        )
    return (), {"weights_sha256": model.weights_hash}, token_labels.surprise_of(model, batch)


def harvest_store(
    model: LanguageModel, out: Path, config: HarvestConfig, progress: Progress = no_progress
) -> Store:
    """Run the model over text and fill the store at `out` (`activations.harvest.harvest`).

    Without hook points, those of `with_hooks` are harvested. Labels `needed:RUN` come from a trained run, so they are
    added when the store is complete; the run is checked before anything is harvested."""
    config = with_hooks(model, config)
    source = config.labels or ""
    if source.startswith(NEEDED):
        config = dataclasses.replace(config, labels=None)
        run = Run(source.removeprefix(NEEDED))
        refuse_other_hook(run, dict.fromkeys(config.hook_names), "this harvest")
    total = config.tokens // config.packing.context * config.packing.context
    with progress("harvest", total, "tokens") as advance:
        store = harvest(model, out, config, advance)
    if source.startswith(NEEDED) and not ranks.rank():
        label(store, source, progress=progress)
    return store


def store_of_files(
    folder: Path,
    out: Path,
    *,
    dtype: Literal["float32", "float16", "bfloat16", "int8"] | None = None,
    context: int = 128,
    shard_tokens: int = 32_768,
    progress: Progress = no_progress,
) -> Store:
    """Fill the store at `out` with the rows that another program has written into `folder` (FORMAT.md, Activations in files).

    Interrupted and called again, it ends with the same bytes; a finished store is returned as it is. Raises HarvestError for
    a folder without that layout, ModelError when its tokenizer cannot be loaded, StoreError for `out` holding anything else
    and for a row that is not finite."""
    source = FilesSource(folder, context=context, dtype=dtype, shard_tokens=shard_tokens)
    with progress("import", source.tokens, "rows") as advance:
        return make_store(source, out, advance)
