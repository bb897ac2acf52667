"""Read a finished run of this tool that somebody shared: run.json, sae.json and sae.safetensors (FORMAT.md)."""

import re
from pathlib import Path

from activations.errors import ForeignError, RunError
from sae.foreign.weights import Imported, Layout, Origin
from sae.runs.run import Run
from sae.runs.saved_sae import INDEX, WEIGHTS, load_sae

TITLE = "SAE workbench (a finished run: run.json, sae.json and sae.safetensors)"
LAYOUTS = (
    Layout(re.escape(INDEX), ("run.json", WEIGHTS), ("eval.json", "labels.json", "lists.json", "features/*")),
)


def recognises(path: Path) -> bool:
    """Return whether this is a folder with a finished run."""
    return all((path / name).is_file() for name in ("run.json", INDEX, WEIGHTS))


def read(path: Path) -> Imported:
    """Read the SAE of a run of any architecture.

    Raises ForeignError when the run is damaged, unfinished or of a newer format."""
    try:
        run = Run(path)
        sae = load_sae(path)
    except RunError as error:
        raise ForeignError(error.message, fix=error.fix) from error
    return Imported(
        sae, Origin(run.record.model, run.hook, run.record.imported.facts if run.record.imported else {}), []
    )
