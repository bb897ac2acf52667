"""A run folder: settings, log, checkpoints, the finished SAE and its evaluation (FORMAT.md, Run)."""

import json
import subprocess
import uuid
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from activations import files, models, ranks
from activations.errors import StoreError
from activations.models import LanguageModel
from activations.store import Store
from sae import config
from sae.architectures import ARCHITECTURES, SAE, name_of
from sae.config import RunConfig
from sae.errors import RunError
from sae.training import logs

FORMAT = 1
WEIGHTS, ABOUT = "sae.safetensors", "sae.json"
HISTORY = "latents.safetensors"  # what became of each latent in training
PACKAGES = ("sae-workbench", "torch", "transformer-lens", "transformers", "datasets", "safetensors", "numpy")


class Run:
    """One training run, or an imported SAE, on disk; read-only but for `create`. Raises RunError when the folder is none."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not (self.path / "run.json").exists():
            raise RunError(f"no run at {path}: needed is a folder with run.json, as `sae train` makes it")
        self.about = read_json(self.path / "run.json")
        try:
            if self.about["format"] > FORMAT:
                raise RunError(
                    f"{path} is of run format {self.about['format']}, this release reads up to {FORMAT}"
                )
            self.config = config.from_json(self.about["config"])
        except (KeyError, TypeError) as error:
            raise RunError(f"{self.path / 'run.json'} is damaged: {error!r}") from error

    def __repr__(self) -> str:
        state = "finished" if self.finished else "unfinished"
        return f"Run({str(self.path)!r}: {name_of(self.config.arch)}, {state})"

    @classmethod
    def create(cls, path: Path, cfg: RunConfig, store: Store, hook: str, scale: float) -> "Run":
        """Make the folder with its run.json. Raises RunError if there is anything in the way."""
        if files.is_taken(path):
            raise RunError(f"{path} is not empty: choose another --out")
        about = {
            **made_by(),
            "config": config.to_json(cfg),
            "hook": hook,
            "d_model": store.width(hook),
            "input_scale": scale,
            "model": store.spec.model,
            "model_revision": store.spec.model_revision,
            "model_dtype": store.spec.model_dtype,
            "weights_sha256": store.spec.weights_sha256,
            "store_fingerprint": store.fingerprint,
        }
        files.write_json(path / "run.json", about)
        return cls(path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether training reached its last step."""
        return (self.path / ABOUT).exists()

    @property
    def digest(self) -> str:
        """SHA-256 of the trained SAE's weights, by which what was made from them knows them again.

        Raises RunError when training has not reached its last step."""
        if not self.finished:
            raise RunError(f"{self.path} is not finished: sae train … --out {self.path} --resume goes on")
        return read_json(self.path / ABOUT)["weights_file_sha256"]

    @property
    def hook(self) -> str:
        """Hook point whose activations the SAE reads."""
        return self.about["hook"]

    @cached_property
    def store(self) -> Store:
        """The store it was trained on, found by the path in its settings.

        Raises StoreError when it is gone or holds other data than it did, or the SAE was imported without one."""
        if not self.config.store:
            raise StoreError(
                f"{self.path} was imported without a store: harvest {self.hook} of {self.about['model']} (sae harvest) and "
                f"import the SAE again, with --store and another --out"
            )
        store = Store(self.config.store)
        if store.fingerprint != self.about["store_fingerprint"]:
            raise StoreError(f"{store.path} is another store than the one {self.path} was trained on")
        return store

    def language_model(self) -> LanguageModel:
        """The language model whose activations the SAE reads, on `device()`: its weights in the precision they were
        harvested in, what it computes in float32.

        Raises ModelError when it is not to be had, RunError when its weights are others now. Which they were is not
        known of a run that was imported without a store."""
        dtype = models.precision(self.about.get("model_dtype", "float32"), device())
        model = models.load(self.about["model"], self.about["model_revision"], dtype, str(device()))
        if self.about["weights_sha256"] not in (None, model.weights_hash):
            raise RunError(
                f"{model.name} has other weights than when the activations of {self.path} were harvested: "
                f"restore it, or harvest and train again"
            )
        model.plain.float()
        return model

    @property
    def log(self) -> list[dict[str, float]]:
        """Rows of log.jsonl, oldest first."""
        return logs.read(self.path / "log.jsonl")

    @property
    def history(self) -> dict[str, Tensor] | None:
        """What became of each latent in training (FORMAT.md), or None where it was not recorded: in a run that is
        not finished, or of an older release. Raises RunError when it cannot be read."""
        path = self.path / HISTORY
        if not path.exists():
            return None
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path} cannot be read: {error}") from error

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `sae evaluate` found, or None when it has not run."""
        path = self.path / "eval.json"
        return read_json(path) if path.exists() else None

    @property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(path.parent for path in self.path.glob("checkpoints/step-*/training.json"))

    def sae(self) -> SAE:
        """The trained SAE; of an unfinished run, the newest checkpoint's. Raises RunError when there is none."""
        if self.finished:
            return load_sae(self.path)
        if not self.checkpoints:
            raise RunError(f"{self.path} has neither a finished SAE nor a checkpoint yet")
        return load_sae(self.checkpoints[-1])


def made_by() -> dict[str, Any]:
    """What every run.json begins with: format, a random id, and the code that makes the run."""
    return {
        "format": FORMAT,
        "id": uuid.uuid4().hex,
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }


def save_sae(folder: Path, sae: SAE, about: dict[str, Any]) -> None:
    """Write sae.safetensors, then sae.json, which marks the pair whole. The SAE must read raw activations."""
    files.write_tensors(folder / WEIGHTS, sae.state_dict(), f"sae-weights-{FORMAT}")
    arch = {"architecture": name_of(sae.cfg), "arch": dict(vars(sae.cfg)), "d_model": sae.d_model}
    digest = files.sha256(folder / WEIGHTS)
    files.write_json(folder / ABOUT, {"format": FORMAT, **arch, **about, "weights_file_sha256": digest})


def load_sae(folder: Path | str) -> SAE:
    """The SAE in a folder, on the CPU, ready to encode raw activations.

    Raises RunError when it is missing, damaged (sha256), of a newer format or of an unknown architecture."""
    folder = Path(folder)
    if not (folder / ABOUT).exists():
        raise RunError(f"no SAE at {folder}: needed are {WEIGHTS} and {ABOUT}")
    about = read_json(folder / ABOUT)
    if about.get("format", 0) > FORMAT:
        raise RunError(f"{folder} is of SAE format {about['format']}, this release reads up to {FORMAT}")
    path = folder / WEIGHTS
    try:
        if files.sha256(path) != about["weights_file_sha256"]:
            raise RunError(f"{path} is damaged: its bytes are not the ones {ABOUT} describes")
        cfg = config.arch_from_json(about["architecture"], about["arch"])
        sae = ARCHITECTURES[about["architecture"]][1](about["d_model"], cfg)
        sae.load_state_dict(load_file(path))
    except (OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{folder} cannot be read: {error}") from error
    return sae.eval().requires_grad_(False)


def find_runs(folder: Path) -> list[Run]:
    """Every run at or below a folder, by path. Folders whose run.json cannot be read are left out."""
    found = []
    for path in sorted(folder.rglob("run.json")):
        try:
            found.append(Run(path.parent))
        except RunError:
            continue
    return found


def read_json(path: Path) -> Any:
    """Content of a JSON file. Raises RunError when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def _git_commit() -> str | None:
    """Commit of the checkout this code runs from, with a + when it was changed since; None outside one."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty=+",
        "--abbrev=40",
        "--exclude=*",
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def device() -> torch.device:
    """The device to compute on: this rank's GPU, or the CPU."""
    return ranks.device()
