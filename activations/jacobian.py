"""The mean Jacobian of a model's last blocks, measured on a store's held-out text and kept beside its shards.

It says what a small change of one token's activation at a hook point does, on average, to what the model's head reads at that
token: through all later blocks, attention and the final norm. The logit lens leaves the blocks out.

Changes of other tokens, which attention brings in, are noise many times as large as the response itself. So the estimate is shrunk, as
far as that noise asks, towards the map that predicts the head's input from the activation best on the same text: a tuned lens by
least squares (Belrose et al. 2023, arXiv:2303.08112, fit theirs by gradient descent). LOG.md has what either predicts alone."""

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import ConfigError, ModelError, StoreError, check_seed, quoted
from activations.jacobian_sums import Sums
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from activations.store import Store
from activations.views import Reached

FORMAT = 1
FOLDER = "jacobians"  # within the store's folder
PER_COORDINATE = 16  # rows that are changed, at least, for each coordinate of the hook point
SAVE_SECONDS = 30.0  # between two saves of unfinished work
MOST_TRIED = 4  # times the rows that are wanted, of which some may not respond


@dataclass(frozen=True)
class JacobianConfig:
    """Settings of a mean Jacobian."""

    rows: int = 16_384
    """Rows of held-out text whose activation is changed, at least 16 for each coordinate of the hook point; shorter text is read
    several times."""
    size: float = 0.1
    """Size of a change, as a share of the activation's own norm."""
    windows: int = 8
    """Windows that are run at once, each with the change added and with it subtracted."""
    seed: int = 0
    """Seed of the changes and of the order of the text."""

    def __post_init__(self) -> None:
        for name in ("rows", "windows"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")
        if not 0 < self.size <= 1:
            raise ConfigError(f"size = {self.size} must lie above 0, and be at most 1")
        check_seed(self.seed)


@dataclass(frozen=True)
class JacobianRecord:
    """The content of a Jacobian's JSON file."""

    store_fingerprint: str
    weights_sha256: str
    hook: str
    config: JacobianConfig
    rows: int
    """Rows that were changed, a row that was changed twice counted twice."""
    explained: float
    """Share of the squared response that the mean Jacobian predicts, less what as many free numbers fit by chance: how alike the
    places are. 1 for a linear model."""
    measured_share: float
    """Weight of the measured changes in the matrix, from 0 to 1; the rest is the tuned lens's. 1 where there is no noise."""
    sha256: str
    """SHA-256 of the tensor's file."""


class MeanJacobian(NamedTuple):
    """A mean Jacobian with how it was measured."""

    matrix: Float[Tensor, "N D"]
    """Change of the head's input (N numbers) for a change of the activation (D numbers), float32."""
    record: JacobianRecord


def mean_jacobian(
    model: LanguageModel,
    store: Store,
    hook: str,
    config: JacobianConfig | None = None,
    progress: Progress = no_progress,
) -> MeanJacobian:
    """Measure the mean Jacobian from a hook point to the input of the model's head, and keep it in the store's folder.

    At each row of held-out text the activation x is changed by `size` |x| / sqrt(D) times normal noise, once added and once
    subtracted; half the difference of what the head reads at that row, over the change's size, is the response. Least squares over all
    rows gives a mean of the rows' Jacobians: other rows of the window are changed too, but independently, so that they only add noise,
    of which shrinking takes most away (`Sums.solve`). A linear model's Jacobian is exact to rounding.

    It needs no gradients, so that any model that can be run with an edit at the hook point has one, and any hook point, be it as wide as
    the residual stream or not. A result for the same store, hook point and settings is returned as it is; interrupted and called again,
    the measurement goes on. Raises ModelError for a model without a readout, StoreError for a store without held-out text or another
    model's, HookError for a hook point that is not the model's, BusyError when another process measures it."""
    config = config or JacobianConfig()
    if (known := read_jacobian(store, hook)) and known.record.config == config:
        return known
    if model.readout is None:
        raise ModelError(
            f"{model.name} has no Jacobian lens: no norm and unembedding lead from its last block to its logits"
        )
    if store.spec.weights_sha256 not in (None, model.weights_hash):
        raise StoreError(f"{store.path} was harvested from other weights than {model.name} has")
    model.check_hook(hook)
    width = store.width(hook)
    wanted = max(config.rows, PER_COORDINATE * width)
    with files.alone_in(store.path / FOLDER):
        sums = _measured(model, store, hook, config, wanted, progress)
        matrix, explained, share = sums.solve()
        # Contiguous, as it is read later: the order in which a product adds up depends on it
        matrix = matrix.float().contiguous()
        tensors, index = _paths(store, hook)
        index.unlink(missing_ok=True)  # an index never names the bytes of another matrix
        files.write_tensors(tensors, {"jacobian": matrix}, f"sae-jacobian-{FORMAT}")
        record = JacobianRecord(
            store.fingerprint,
            model.weights_hash,
            hook,
            config,
            int(sums.rows),
            explained,
            share,
            files.sha256(tensors),
        )
        files.write_sealed(index, {"format": FORMAT, **asdict(record)})
        _part(store, hook).unlink(missing_ok=True)
        files.sweep(store.path / FOLDER)
    return MeanJacobian(matrix, record)


def read_jacobian(store: Store, hook: str) -> MeanJacobian | None:
    """Return the mean Jacobian that is kept beside a store's shards; None without one, or when the store has changed since.

    Raises StoreError, with the command that puts it right, when its files are damaged or of a newer format."""
    tensors, index = _paths(store, hook)
    if not index.exists():
        return None
    fix = f"rm {quoted(index)}"
    try:
        content = files.read_json(index)
        if (number := content["format"]) > FORMAT:
            raise StoreError(f"{index} has format {number}, this release reads up to {FORMAT}", fix=fix)
        record = parse(JacobianRecord, content)
        if record.store_fingerprint != store.fingerprint:
            return None
        if files.sha256(files.plain(tensors)) != record.sha256:
            raise ValueError(f"{tensors.name} has other bytes than were written")
        matrix = files.read_tensors(tensors)["jacobian"]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise StoreError(f"{index} is damaged: {error}", fix=fix) from error
    if matrix.ndim != 2 or matrix.shape[1] != store.width(hook):
        raise StoreError(f"{tensors} has shape {list(matrix.shape)}, which does not fit {hook}", fix=fix)
    return MeanJacobian(matrix, record)


def _measured(
    model: LanguageModel, store: Store, hook: str, config: JacobianConfig, wanted: int, progress: Progress
) -> Sums:
    """Change rows until there are as many as wanted, going on from the sums that an interrupted call has saved."""
    width = store.width(hook)
    identity = [store.fingerprint, model.weights_hash, hook, config.seed, config.size, config.windows]
    sums, part = Sums(width, model.width), _part(store, hook)
    kept = _resume(part, identity, sums)
    saved = time.monotonic()
    tried = 0
    with progress("jacobian", wanted, "rows", done=min(int(sums.rows), wanted)) as advance:
        for number, (tokens, chosen) in enumerate(_text(store, config)):
            if int(sums.rows) >= wanted:
                break
            tried += int(chosen.sum())
            if tried > MOST_TRIED * wanted:
                raise ModelError(
                    f"{int(sums.rows):,} of {tried:,} rows at {hook} respond to a change: {model.name} has no Jacobian lens there"
                )
            if number < kept:
                continue
            noise = torch.Generator().manual_seed((config.seed * 1_000_003 + number) % 2**63)
            change = torch.randn(*tokens.shape, width, generator=noise) * chosen[..., None]
            before = int(sums.rows)
            sums.add(
                change[chosen], *(part[chosen] for part in _run(model, tokens, hook, change, config.size))
            )
            advance(int(sums.rows) - before)
            if time.monotonic() - saved > SAVE_SECONDS:
                _save(part, identity, sums)
                saved = time.monotonic()
    return sums


def _text(store: Store, config: JacobianConfig) -> Iterator[tuple[Int[Tensor, "n T"], Bool[Tensor, "n T"]]]:
    """Yield batches of windows with the rows of held-out documents in them, shard by shard in a seeded order, without end.

    Raises StoreError for a store without held-out text."""
    order = torch.randperm(len(store.shards), generator=torch.Generator().manual_seed(config.seed)).tolist()
    while True:
        found = False
        for number in order:
            shard = store.read(number)
            rows = store.rows(shard, "held-out", positions="all")  # one matrix serves all runs of the store
            having = rows.any(1)
            for tokens, chosen in zip(
                shard.tokens[having].split(config.windows), rows[having].split(config.windows), strict=True
            ):
                if len(tokens):  # `split` turns no windows into one empty piece
                    found = True
                    yield tokens, chosen
        if not found:
            raise StoreError(
                f"{store.path} has no held-out text: harvest more documents (one in ten is held out)"
            )


@torch.no_grad()
def _run(
    model: LanguageModel, tokens: Tensor, hook: str, change: Float[Tensor, "n T D"], size: float
) -> tuple[Float[Tensor, "n T N"], Float[Tensor, "n T D"], Float[Tensor, "n T N"]]:
    """Return the response of the head's input for a unit of change, the activation, and the head's input.

    The response is half the difference of two passes over the change's size, and the head's input is their mean, which differs from
    that of a pass without changes by the square of their size."""
    n, last = len(tokens), model.last_residual
    clean: list[Tensor] = []
    reached: list[Tensor] = []

    def scale() -> Tensor:
        return size * clean[0].norm(dim=-1, keepdim=True) / math.sqrt(clean[0].shape[-1])

    def perturb(x: Tensor) -> Tensor:
        clean.append(x[:n].clone())  # a model may write over its activations in place
        step = scale() * change.to(x)
        return torch.cat([clean[0] + step, clean[0] - step])

    def keep(x: Tensor) -> Tensor:
        reached.append(x)
        if not model.in_step:  # ranks that run the model together have to reach its end together
            raise Reached
        return x

    # At the last hook point itself there is one edit, which does both
    edits = {hook: lambda x: keep(perturb(x))} if hook == last else {hook: perturb, last: keep}
    with suppress(Reached):
        model.logits(torch.cat([tokens, tokens]), edits)
    assert model.readout is not None
    read = model.readout.normed(reached[0].flatten(0, 1)).view_as(reached[0])
    # A row of zeros cannot be changed by a share of its norm, and has no response
    read = read.cpu()  # in a model that several devices share it lies on another one than the hook point
    response = (read[:n] - read[n:]).double() / (2 * scale().double().cpu()).clamp_min(1e-300)
    return response, clean[0].cpu(), (read[:n] + read[n:]) / 2


def _paths(store: Store, hook: str) -> tuple[Path, Path]:
    folder, name = store.path / FOLDER, files.as_name(hook)
    return folder / f"{name}.safetensors", folder / f"{name}.json"


def _part(store: Store, hook: str) -> Path:
    return store.path / FOLDER / f"{files.as_name(hook)}.unfinished.safetensors"


def _save(part: Path, identity: list[Any], sums: Sums) -> None:
    tensors = {**vars(sums), "identity": torch.tensor(list(repr(identity).encode()), dtype=torch.uint8)}
    files.write_tensors(part, tensors, f"sae-jacobian-sums-{FORMAT}")


def _resume(part: Path, identity: list[Any], sums: Sums) -> int:
    """Fill `sums` from the file of an interrupted call of the same job, if there is one; return how many batches are in them."""
    with suppress(OSError, SafetensorError, KeyError):
        tensors = files.read_tensors(part)
        if bytes(tensors.pop("identity").tolist()) == repr(identity).encode():
            for name in vars(sums):
                setattr(sums, name, tensors[name])
    return int(sums.batches)
