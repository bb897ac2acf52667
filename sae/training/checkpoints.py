"""Checkpoints: usable SAEs that training goes on from with the very same bits."""

import shutil
from pathlib import Path
from typing import Any

import torch

from activations.disk import files
from activations.errors import DivergedError, RunError
from sae.runs.records import CheckpointRecord
from sae.runs.run import HISTORY, Run
from sae.runs.saved_sae import as_written, load_sae, read_json, read_tensors, save_sae
from sae.training.trainer import Trainer

STATE, ABOUT = "training.safetensors", "training.json"


def save(run: Run, trainer: Trainer, reader_state: dict[str, Any]) -> None:
    """Write checkpoints/step-*/ whole or not at all, and after the last step the latents' history and the finished SAE.

    Older checkpoints beyond `keep_checkpoints` are removed once the new one is in place. Raises DivergedError, with
    nothing written, when a weight is not finite: every checkpoint there is can be gone on from."""
    folded = trainer.folded()
    if not all(torch.isfinite(weight).all() for weight in folded.parameters()):
        raise DivergedError(f"a weight is no longer finite at step {trainer.step}: lower --train.lr")
    about = {"hook": run.hook, "model": run.record.model, "step": trainer.step}
    folder = run.path / "checkpoints" / f"step-{trainer.step:08d}"
    part = folder.with_name(folder.name + files.PART)
    for left in folder.parent.glob(
        f"*{files.PART}"
    ):  # by a killed run, whose next checkpoint had another step
        shutil.rmtree(left)
    part.mkdir(parents=True)
    save_sae(part, folded, about)
    files.write_tensors(part / STATE, trainer.tensors(), "sae-training-1")
    place = {"step": trainer.step, "reader": reader_state, "state_file_sha256": files.sha256(part / STATE)}
    files.write_sealed(part / ABOUT, place)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    files.sync(folder.parent)
    for old in run.checkpoints[: -trainer.cfg.keep_checkpoints]:
        shutil.rmtree(old)
    if trainer.finished:
        files.sweep(run.path)
        if trainer.history.whole:
            files.write_tensors(run.path / HISTORY, trainer.history.tensors(), "sae-latents-1")
            about["latents_file_sha256"] = files.sha256(run.path / HISTORY)
        save_sae(run.path, folded, about)


def resume(run: Run, trainer: Trainer) -> dict[str, Any]:
    """`restore` from the run's newest checkpoint; where that is damaged, RunError names the newest one that is not."""
    try:
        return restore(run.checkpoints[-1], trainer)
    except RunError as error:
        raise RunError(f"{error}: {_way_on(run)}") from error


def restore(checkpoint: Path, trainer: Trainer) -> dict[str, Any]:
    """Bring a fresh trainer of the same settings to where a checkpoint was; returns the reader's state.

    Raises RunError when a file of it is damaged."""
    try:
        sae, record, tensors = _read(checkpoint)
        trainer.sae.load_state_dict(sae)
        trainer.restore(record.step, tensors)
        return record.reader
    except (KeyError, TypeError, RuntimeError, RunError) as error:
        raise RunError(f"{checkpoint} is damaged ({error})") from error


def _read(checkpoint: Path) -> tuple[dict[str, Any], CheckpointRecord, dict[str, Any]]:
    """Weights, place and state of a checkpoint; an error where its bytes are not those that were written."""
    record = read_json(checkpoint / ABOUT, kind=CheckpointRecord)
    state = as_written(checkpoint / STATE, record.state_file_sha256, ABOUT)
    return load_sae(checkpoint).state_dict(), record, read_tensors(state)


def _way_on(run: Run) -> str:
    """What to do when the newest checkpoint is damaged."""
    for number, checkpoint in enumerate(reversed(run.checkpoints[:-1]), 1):
        try:
            _read(checkpoint)
        except RunError:
            continue
        newer = "it" if number == 1 else f"it and the {number - 1} before it, which are damaged too,"
        return f"delete {newer} and --resume goes on from {checkpoint}"
    return "no other is whole; delete them all, and --resume begins at step 0"
