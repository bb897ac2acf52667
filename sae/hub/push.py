"""Share a run on the hub: its SAE and measurements with a model card, without any path of this machine."""

import re
import shutil
from pathlib import Path, PureWindowsPath
from typing import Any

from activations import hub
from activations.disk import files
from activations.errors import HubError, quoted
from sae.architectures import name_of
from sae.evaluation.measures import measure
from sae.features.feature import FeatureStore
from sae.hub import HubName
from sae.hub.fetch import asked
from sae.report import model_card
from sae.report import runs as runs_report
from sae.report.model_card import Card
from sae.runs.run import Run
from sae.runs.saved_sae import INDEX, WEIGHTS

README, PICTURE = "README.md", "densities.svg"
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the hub's name of the embedded model
PATHS = re.compile(r"^(?:/|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\|file:)")
# Folders within features/ that are not sent: effects name this machine's copy of the run, codes are scratch files, judged
# is a language model's every answer (judgements.json, which is sent, sums them up).
NOT_SENT = ("effects", "codes", "judged")


def stage(run: Run, name: HubName, folder: Path, features: bool) -> list[Path]:
    """Fill an empty folder with the files that are sent for a run, and return them.

    Paths of this machine are replaced by their last part, and the store's path is left out. Raises RunError when the run
    is unfinished or damaged, HubError when features are asked for and the run has none."""
    _ = run.digest  # raises for an unfinished run
    _ = run.sae()  # raises for a damaged one
    run_json = without_paths(_object(run.path / "run.json"))
    run_json["config"]["store"] = ""
    files.write_sealed(folder / "run.json", run_json)
    files.write_sealed(folder / INDEX, without_paths(_object(run.path / INDEX)))
    shutil.copyfile(run.path / WEIGHTS, folder / WEIGHTS)
    if run.evaluation is not None:
        shutil.copyfile(run.path / "eval.json", folder / "eval.json")
    for written in ("labels.json", "lists.json"):
        if (run.path / written).is_file():
            shutil.copyfile(run.path / written, folder / written)
    store = FeatureStore(run.path / "features") if (run.path / "features").is_dir() else None
    if features:
        if store is None:
            raise HubError(
                f"{run.path} has no features to send: collect them, or leave out --features",
                fix=f"sae features {quoted(run.path)}",
            )
        shutil.copytree(
            store.path, folder / "features", ignore=shutil.ignore_patterns(*NOT_SENT, "*.lock", ".lock")
        )
        files.write_sealed(
            folder / "features" / "features.json", without_paths(_object(store.path / "features.json"))
        )
    if store is not None:
        density = store.table["density"].to_pylist()
        (folder / PICTURE).write_text(model_card.densities(density, store.record.tokens), encoding="utf-8")
    (folder / README).write_text(
        model_card.markdown(_card(run, name, run_json["model"], store is not None, features)),
        encoding="utf-8",
    )
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _object(path: Path) -> dict[str, object]:
    """Read a sealed JSON object and drop the seal, which no longer holds once paths are replaced."""
    content = files.read_json(path)
    content.pop(files.SEAL, None)
    return content


def without_paths(content: Any) -> Any:
    """Return JSON content in which every string that is a path of this machine is replaced by the path's last part."""
    if isinstance(content, dict):
        return {key: without_paths(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    if isinstance(content, str) and PATHS.match(content):
        return PureWindowsPath(content).name  # splits at slashes and backslashes alike
    return content


def _card(run: Run, name: HubName, model: str, picture: bool, features: bool) -> Card:
    base = (
        EMBEDDED
        if model == "embedded"
        else None
        if PATHS.match(run.record.model) or Path(model).exists()
        else model
    )
    rows: list[tuple[str, str, str]] = []
    measured = ""
    if evaluation := run.evaluation:
        rows = [
            (measure(name).title, f"{estimate.value:.4g}", runs_report.interval(evaluation, name, ".4g"))
            for name, estimate in evaluation.measures.items()
            if None not in (estimate.value, estimate.low, estimate.high)
        ]
        rows.append(("latents silent on these tokens", f"{evaluation.dead:.1%}", ""))
        measured = f"on {evaluation.tokens:,} held-out tokens of {evaluation.documents} documents"
    arch = run.config.arch
    settings = {key: value for key, value in vars(arch).items() if key != "d_sae"}
    return Card(str(name), name_of(arch), EMBEDDED if model == "embedded" else model, base, run.hook, arch.d_sae, settings, rows,
                measured, PICTURE if picture else None, features)  # fmt: skip


def refuse_without_token() -> None:
    """Raise HubError unless this machine has a token for the hub and the hub answers."""
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(
            "sending needs a token of the hub that may write: log in, or set HF_TOKEN", fix="hf auth login"
        )
    if silence := hub.silence():
        raise HubError(f"{silence}: push the run when the hub answers")


def send(folder: Path, name: HubName, private: bool) -> str:
    """Send a folder's files and return the commit's address; a repository that does not exist is created.

    Files that arrived before an interruption are not sent again. Raises HubError when the hub refuses."""
    from huggingface_hub import HfApi

    api = HfApi()
    asked(name, lambda: api.create_repo(name.repository, private=private or None, exist_ok=True))
    done = asked(
        name,
        lambda: api.upload_folder(
            repo_id=name.repository,
            folder_path=folder,
            path_in_repo=name.path or ".",
            commit_message="Share an SAE",
        ),
        "sending ",
    )
    return done.commit_url
