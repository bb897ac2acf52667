"""Checkpoints: usable SAEs that training goes on from with the very same bits."""

import shutil
from pathlib import Path
from typing import Any

from activations import files
from sae.contents import Place
from sae.errors import RunError
from sae.runs import HISTORY, Run, load_sae, read_json, read_tensors, save_sae
from sae.training.trainer import Trainer


def save(run: Run, trainer: Trainer, reader_state: dict[str, Any]) -> None:
    """Write checkpoints/step-*/ whole or not at all, and after the last step the latents' history and the finished SAE.

    Older checkpoints beyond `keep_checkpoints` are removed once the new one is in place."""
    folded = trainer.folded()
    about = {"hook": run.hook, "model": run.about["model"], "step": trainer.step}
    folder = run.path / "checkpoints" / f"step-{trainer.step:08d}"
    part = folder.with_name(folder.name + files.PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_sae(part, folded, about)
    files.write_tensors(part / "training.safetensors", trainer.tensors(), "sae-training-1")
    files.write_json(part / "training.json", {"step": trainer.step, "reader": reader_state})
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    files.sync(folder.parent)
    for old in run.checkpoints[: -trainer.cfg.keep_checkpoints]:
        shutil.rmtree(old)
    if trainer.finished:
        files.sweep(run.path)
        if trainer.history.whole:
            files.write_tensors(run.path / HISTORY, trainer.history.tensors(), "sae-latents-1")
        save_sae(run.path, folded, about)


def restore(checkpoint: Path, trainer: Trainer) -> dict[str, Any]:
    """Bring a fresh trainer of the same settings to where a checkpoint was; returns the reader's state.

    Raises RunError when a file of it is damaged."""
    trainer.sae.load_state_dict(load_sae(checkpoint).state_dict())
    try:
        about = read_json(checkpoint / "training.json", kind=Place)
        trainer.restore(about["step"], read_tensors(checkpoint / "training.safetensors"))
        return about["reader"]
    except (RunError, KeyError, TypeError, RuntimeError) as error:
        raise RunError(
            f"{checkpoint} is damaged ({error}): delete it, and --resume goes on from the one before"
        ) from error
