"""Checkpoints: complete SAEs from which training resumes with exactly the same bits."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from activations.disk import files
from activations.errors import DivergedError, RunError
from sae.runs.records import CheckpointRecord
from sae.runs.run import HISTORY, Run
from sae.runs.saved_sae import as_written, load_sae, read_json, read_tensors, save_sae
from sae.training.trainer import Trainer

STATE, INDEX = "training.safetensors", "training.json"


def save(run: Run, trainer: Trainer, reader_state: Mapping[str, object]) -> None:
    """Write checkpoints/step-*/ completely or not at all; after the last step also the latents' history and the final SAE.

    Older checkpoints beyond `keep_checkpoints` are removed once the new one is in place. Raises DivergedError, and writes
    nothing, when a weight is not finite, so that training can resume from every checkpoint that exists."""
    folded = trainer.folded()
    if not all(torch.isfinite(weight).all() for weight in folded.parameters()):
        raise DivergedError(f"a weight is no longer finite at step {trainer.step}: lower --train.lr")
    source: dict[str, str | int | None] = {"hook": run.hook, "model": run.record.model, "step": trainer.step}
    folder = run.path / "checkpoints" / f"step-{trainer.step:08d}"
    part = folder.with_name(folder.name + files.PART)
    # A killed run may have left one under another step's name.
    for left in folder.parent.glob(f"*{files.PART}"):
        shutil.rmtree(left)
    part.mkdir(parents=True)
    save_sae(part, folded, source)
    files.write_tensors(part / STATE, trainer.tensors(), "sae-training-1")
    progress = {"step": trainer.step, "reader": reader_state, "state_file_sha256": files.sha256(part / STATE)}
    files.write_sealed(part / INDEX, progress)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    files.sync(folder.parent)
    for old in run.checkpoints[: -trainer.cfg.keep_checkpoints]:
        shutil.rmtree(old)
    if trainer.finished:
        files.sweep(run.path)
        if trainer.history.complete:
            files.write_tensors(run.path / HISTORY, trainer.history.tensors(), "sae-latents-1")
            source["latents_file_sha256"] = files.sha256(run.path / HISTORY)
        save_sae(run.path, folded, source)


def resume(run: Run, trainer: Trainer) -> dict[str, object]:
    """Call `restore` with the run's newest checkpoint. Where it is damaged, the RunError names the newest intact one."""
    try:
        return restore(run.checkpoints[-1], trainer)
    except RunError as error:
        raise RunError(f"{error}: {_remedy(run)}") from error


def restore(checkpoint: Path, trainer: Trainer) -> dict[str, object]:
    """Restore a checkpoint into a new trainer of the same settings. Return the reader's state.

    Raises RunError when one of its files is damaged."""
    try:
        sae, record, tensors = _read(checkpoint)
        trainer.sae.load_state_dict(sae)
        trainer.restore(record.step, tensors)
        return record.reader
    except (KeyError, TypeError, RuntimeError, RunError) as error:
        raise RunError(f"{checkpoint} is damaged ({error})") from error


def _read(checkpoint: Path) -> tuple[dict[str, Tensor], CheckpointRecord, dict[str, Tensor]]:
    """Return a checkpoint's weights, record and training state. Raises RunError unless its bytes are those written."""
    record = read_json(checkpoint / INDEX, kind=CheckpointRecord)
    state = as_written(checkpoint / STATE, record.state_file_sha256, INDEX)
    return load_sae(checkpoint).state_dict(), record, read_tensors(state)


def _remedy(run: Run) -> str:
    """Return what to do when the newest checkpoint is damaged."""
    for number, checkpoint in enumerate(reversed(run.checkpoints[:-1]), 1):
        try:
            _read(checkpoint)
        except RunError:
            continue
        newer = "it" if number == 1 else f"it and the {number - 1} before it, which are damaged too,"
        return f"delete {newer} and --resume continues from {checkpoint}"
    return "no other is whole; delete them all, and --resume begins at step 0"
