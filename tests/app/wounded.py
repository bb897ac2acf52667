"""A folder with a run whose latents are dead for known reasons and which has a report, and one without a report."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from activations.disk import files
from sae.diagnosis.report import DeadReport
from sae.diagnosis.sample import DeadConfig
from sae.features.collect import FeaturesConfig
from sae.runs.run import Run
from sae.workflows.diagnose import diagnose_run
from sae.workflows.features import collect_features
from tests.app.worlds import HOSTILE_RUN

LOW, TINY, ALWAYS = (
    (3, 5),
    7,
    9,
)  # latents: of low bias, of a collapsed encoder, and one that fires nearly always
CFG = DeadConfig(rows=600, off_tokens=0, batch=128)


def make(folder: Path, toy: Path) -> Path:
    """Make `wounded` with report and features, `new` with neither, and a copy of the first with a hostile name."""
    for name in ("wounded", "new"):
        shutil.copytree(toy, folder / name)
        wound(folder / name)
        shutil.rmtree(folder / name / "features")
    run = Run(folder / "wounded")
    collect_features(
        run, run.language_model(), FeaturesConfig(strongest=2, sampled=5, neighbours=3, logits=3)
    )
    diagnose_run(run, CFG, None)
    shutil.copytree(folder / "wounded", folder / HOSTILE_RUN)
    return folder


def wound(path: Path) -> None:
    """Plant causes of death in a run's weights."""
    tensors = load_file(path / "sae.safetensors")
    tensors["b_enc"][list(LOW)] = -1000.0
    tensors["W_enc"][:, TINY] *= 1e-5
    tensors["b_enc"][TINY] = -1e-3
    tensors["b_enc"][ALWAYS] = 1000.0
    files.write_tensors(path / "sae.safetensors", tensors, "sae-weights-1")
    about = json.loads((path / "sae.json").read_text())
    digest = files.sha256(path / "sae.safetensors")
    (path / "sae.json").write_text(json.dumps({**about, "weights_file_sha256": digest}))


def report(folder: Path) -> DeadReport:
    """Return the report on the wounded run."""
    return DeadReport(folder / "wounded" / "dead")
