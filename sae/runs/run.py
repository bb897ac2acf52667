"""A run folder (FORMAT.md, Run): settings, log, checkpoints, the finished SAE, its evaluation, and the problems that these show."""

import difflib
import glob
import subprocess
import uuid
from collections.abc import Sequence
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from activations import engines, language_model
from activations.disk import files
from activations.errors import RunError, StoreError, quoted
from activations.language_model import LanguageModel
from activations.parallel import ranks
from activations.store import INDEX as STORE_INDEX
from activations.store import ShardFolder, Store
from sae import config
from sae.architectures import SAE, name_of
from sae.config import RunConfig
from sae.runs.problems import problems
from sae.runs.records import Evaluation, RunRecord, SAERecord
from sae.runs.saved_sae import (
    FORMAT,
    INDEX,
    as_written,
    load_sae,
    read_json,
    read_log,
    read_record,
    read_results,
    read_tensors,
)

# Of eval.json; the language model of format 1 read the windows with the most held-out text, which came from few documents
EVALUATION_FORMAT = 2
TRUST = "trust"  # the run's controls, and what it was found to be worth beside them
POOL = "pool"  # of a run of `sae pool`: the pooled SAE that it started from
RING = "ring"  # of a run on a stream that is not finished: its activations while they are needed
STORE = "store"  # of a run on a stream: the activations that it keeps
HISTORY = "latents.safetensors"  # what became of each latent in training
PACKAGES = ("sae-workbench", "torch", "transformer-lens", "transformers", "datasets", "safetensors", "numpy")


class Run:
    """One training run, or an imported SAE, on disk; read-only but for `create`. Raises RunError when the folder is none."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise RunError(
                f"no run at {path}: expected a folder with run.json, as `sae train` makes it{_likely(self.path)}"
            )
        self.record = read_record(self.path / "run.json", "run", FORMAT, RunRecord)
        self.config = config.from_json(self.record.config)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"Run({str(self.path)!r}: {name_of(self.config.arch)}, {state})"

    @classmethod
    def create(
        cls,
        path: Path,
        cfg: RunConfig,
        store: ShardFolder,
        hook: str,
        scale: float,
        rate_trials: Sequence[tuple[float, float]] = (),
    ) -> "Run":
        """Make the folder with its run.json. Raises RunError if there is anything in the way.

        `rate_trials` are rates tried and the losses they reached, where the learning rate was measured."""
        if files.is_taken(path, besides=(RING, POOL)):
            raise RunError(f"{path} is not empty: choose another --out")
        record = {
            **made_by(),
            "config": config.to_json(cfg),
            "hook": hook,
            "d_model": store.width(hook),
            "input_scale": scale,
            "model": store.spec.model,
            "model_revision": store.spec.model_revision,
            "model_dtype": store.spec.model_dtype,
            "weights_sha256": store.spec.weights_sha256,
            "store_fingerprint": store.fingerprint if isinstance(store, Store) else None,
        }
        if rate_trials:
            record["rate_trials"] = rate_trials
        if store.spec.source != "bridge":
            record["source"] = store.spec.source
        files.write_sealed(path / "run.json", record)
        return cls(path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        return (self.path / INDEX).exists()

    @property
    def resume(self) -> str:
        """The command that continues its training."""
        command = f"sae resume {quoted(self.path)}"
        return f"{command} --ring 20GB" if self.config.stream else command

    @property
    def digest(self) -> str:
        """SHA-256 of the trained SAE's weights, by which what was made from them knows them again.

        Raises RunError when training has not reached its last step, or the SAE is damaged."""
        if not self.finished:
            raise RunError(f"{self.path} is not finished: {self.resume} continues it")
        return self._sae_record.weights_file_sha256

    @property
    def _sae_record(self) -> SAERecord:
        return read_json(self.path / INDEX, kind=SAERecord, fix=self._fix_sae)

    @property
    def hook(self) -> str:
        """Hook point whose activations the SAE reads."""
        return self.record.hook

    @cached_property
    def store(self) -> Store:
        """The store it was trained on, found by the path in its settings; of a run on a stream, the part that it has kept.

        It gives the rows that the run was trained on: of a run with `positions = "last"` the last of each document in a window.
        Raises StoreError when it is gone or holds other data than it did, or the SAE was imported without one."""
        if self.config.stream:
            if not (self.path / STORE / STORE_INDEX).exists():
                raise StoreError(
                    f"{self.path} trains on a stream, and the activations that it keeps are ready when training ends",
                    fix=self.resume,
                )
            return Store(self.path / STORE, self.config.positions)
        if not self.config.store:
            raise StoreError(
                f"{self.path} was imported without a store: harvest {self.hook} of {self.record.model} (sae harvest) and "
                f"import the SAE again, with --store and another --out"
            )
        store = Store(self.config.store, self.config.positions)
        if store.fingerprint != self.record.store_fingerprint:
            raise StoreError(f"{store.path} is another store than the one {self.path} was trained on")
        return store

    @property
    def first_tokens(self) -> list[int] | None:
        """Ids that every window of its store begins with; None, for the tokenizer's own BOS, where the store is gone."""
        try:
            bos = self.store.spec.bos_token
        except StoreError:
            return None
        return [] if bos is None else [bos]

    @property
    def reads_files(self) -> bool:
        """Whether its activations come from another program's files, so that no language model belongs to it."""
        return self.record.source == "files"

    def language_model(self) -> LanguageModel:
        """Load the language model whose activations the SAE reads onto `device()`. Its weights have the precision of the
        harvest, and it computes in float32. One that was harvested with another engine than TransformerLens' view is spread
        over all devices and computes in the precision of the harvest.

        Raises ModelError when it is not to be had, RunError when its weights are others now or when it `reads_files`. Which
        they were is not known of a run that was imported without a store."""
        record = self.record
        if self.reads_files:
            raise RunError(
                f"{self.path} was trained on another program's files of {record.model}, so that no language model can be run "
                f"with it: sae evaluate, features and dead do without one"
            )
        of_bridge = record.source == "bridge"
        model = (
            language_model.load(record.model, record.model_revision, record.model_dtype, str(device()))
            if of_bridge
            # It may not fit on one device, or at twice its size
            else engines.load("transformers", record.model, record.model_revision, record.model_dtype)
        )
        if record.weights_sha256 not in (None, model.weights_hash):
            raise RunError(
                f"{model.name} has other weights than when the activations of {self.path} were harvested: "
                f"restore it, or harvest and train again"
            )
        if of_bridge:
            model.plain.float()
        return model

    @property
    def log(self) -> list[dict[str, float]]:
        """Rows of log.jsonl, oldest first."""
        return read_log(self.path / "log.jsonl")

    @property
    def history(self) -> dict[str, Tensor] | None:
        """The history of each latent in training (FORMAT.md); None where it was not recorded: in a run that is not finished,
        or of an older release. Raises RunError when it cannot be read."""
        path = self.path / HISTORY
        if not path.exists():
            return None
        if self.finished:
            as_written(path, self._sae_record.latents_file_sha256, INDEX, self._fix_sae)
        return read_tensors(path, self._fix_sae)

    @property
    def evaluation(self) -> Evaluation | None:
        """Return what `sae evaluate` measured, or None when it has not run, or measured an earlier checkpoint of this run."""
        path, again = self.path / "eval.json", f"sae evaluate {quoted(self.path)}"
        evaluation = read_results(
            path,
            "evaluation",
            EVALUATION_FORMAT,
            Evaluation,
            again,
            unchanged=lambda record: not record.splice,
        )
        # an eval.json of an older release does not name the weights it measured
        return evaluation if evaluation and evaluation.sae_sha256 in (None, self.weights) else None

    @property
    def problems(self) -> list[str]:
        """Problems that make the SAE useless as it is, one line each, from the log and the evaluation; computes nothing.

        The log counts when training is finished: at its beginning any SAE is worse than the mean."""
        return problems(self.record, self.log if self.finished else [], self.evaluation)

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        complete = (path.parent for path in self.path.glob("checkpoints/step-*/training.json"))
        # A process killed after the last file but before the renaming leaves a folder that ends in PART. Nothing would ever
        # rename it, so a run that resumed from it would depend on a folder that the next checkpoint deletes.
        return sorted(path for path in complete if path.suffix != files.PART)

    def sae(self) -> SAE:
        """Load the trained SAE, or an unfinished run's newest checkpoint. Raises RunError when there is neither."""
        if self.finished:
            return load_sae(self.path, self._fix_sae)
        return load_sae(self.newest_checkpoint)

    @property
    def newest_checkpoint(self) -> Path:
        """Folder of the last whole checkpoint. Raises RunError when there is none."""
        if not self.checkpoints:
            raise RunError(f"{self.path} has neither a finished SAE nor a checkpoint yet")
        return self.checkpoints[-1]

    @property
    def weights(self) -> str:
        """SHA-256 of the weights that `sae` reads."""
        return (
            self.digest
            if self.finished
            else read_json(self.newest_checkpoint / INDEX, kind=SAERecord).weights_file_sha256
        )

    @property
    def _fix_sae(self) -> str | None:
        """The command that writes a damaged finished SAE again; None without a checkpoint.

        Without sae.json the run counts as unfinished, so that `sae resume` writes the SAE from the newest checkpoint, which
        holds the same weights."""
        remedy = self.resume
        return f"rm {quoted(self.path / INDEX)} && {remedy}" if self.checkpoints else None


def _likely(path: Path) -> str:
    """Return which runs may be meant by a path that is none, as the end of a sentence: those in it, or one whose path is nearly
    the same. Empty where there are none."""
    runs = [made.parent for made in sorted(path.glob("*/run.json"))]
    if not runs:
        beside = [*path.parent.glob("*/run.json"), *Path().glob(f"*/{glob.escape(path.name)}/run.json")]
        near = difflib.get_close_matches(str(path), [str(made.parent) for made in beside], n=1, cutoff=0.8)
        runs = [Path(each) for each in near]
    more = "" if len(runs) <= 3 else f" or another of the {len(runs)} in it"
    return f"; did you mean {' or '.join(map(str, runs[:3]))}{more}?" if runs else ""


def made_by() -> dict[str, object]:
    """Return the first entries of every run.json: format, a random id, and the versions of the code that makes the run."""
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def find_runs(folder: Path) -> list[Run]:
    """Return every run at or below a folder, in order of their paths, without those whose run.json cannot be read, and without
    what belongs to other runs there: their controls (`sae trust`) and the pools that they started from (`sae pool`)."""
    runs = []
    for path in sorted(folder.rglob("run.json")):
        owner = _owner(path.parent)
        if owner and owner.is_relative_to(folder):
            continue
        try:
            runs.append(Run(path.parent))
        except RunError:
            continue
    return runs


def _owner(path: Path) -> Path | None:
    """Return the folder of the run that has the one at `path` as its control or pool; None where there is none."""
    owner = path.parent if path.name == POOL else path.parents[1] if path.parent.name == TRUST else None
    return owner if owner and (owner / "run.json").exists() else None


def _git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with a + if it was changed since; None outside one, and
    without git."""
    here = Path(__file__)

    def ask(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=False
        ).stdout.strip()

    try:
        # Where this code is installed in the checkout of another project, as in its .venv, that one's commit says nothing.
        if not ask("ls-files", here.name):
            return None
        return ask("describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*") or None
    except OSError:
        return None


def device() -> torch.device:
    """Return the device to compute on: this rank's GPU, or the CPU."""
    return ranks.device()
