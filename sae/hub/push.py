"""Share a run on the hub: its SAE and measurements with a model card, without any path of this machine."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from types import MappingProxyType
from typing import Any

from activations import hub
from activations.disk import files
from activations.errors import HubError, quoted
from activations.sources import is_named
from sae.architectures import name_of
from sae.evaluation.measures import measure
from sae.features.feature import FeatureStore, features_of
from sae.features.folder import INDEX as INDEX_OF_FEATURES
from sae.features.meaning import kept_meanings, save_meanings
from sae.hub import HubName, is_hub_name
from sae.hub.fetch import asked
from sae.report import model_card
from sae.report import runs as runs_report
from sae.report.model_card import Card
from sae.runs.run import Run
from sae.runs.saved_sae import INDEX, WEIGHTS, read_json

README, PICTURE = "README.md", "densities.svg"
EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the hub's name of the embedded model
# A path of this machine, up to the last slash and the word behind it: folders may have spaces in their names.
PATHS = re.compile(
    r"""(?<![^\s"'(=])(?:/(?=\S)|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\|files?:)(?:.*[\\/])?[^\s"')]*"""
)
# Folders within features/ that are not sent: effects name this machine's copy of the run, codes are scratch files, judged
# is a language model's every answer (judgements.json, which is sent, sums them up).
NOT_SENT = ("effects", "codes", "judged")


def stage(run: Run, name: HubName, folder: Path, features: bool) -> list[Path]:
    """Fill an empty folder with the files that are sent for a run, and return them.

    Paths of this machine are replaced by their last part, and the store's path is left out. Raises RunError when the run
    is unfinished or damaged, HubError when features are asked for and the run has none."""
    _ = run.digest  # raises for an unfinished run
    _ = run.sae()  # raises for a damaged one
    known = _paths_in(run)
    run_json = without_paths(_object(run.path / "run.json"), known)
    run_json["config"]["store"] = ""
    files.write_sealed(folder / "run.json", run_json)
    files.write_sealed(folder / INDEX, without_paths(_object(run.path / INDEX), known))

    def copy(source: str | Path, target: str | Path) -> None:
        try:
            shutil.copyfile(files.plain(Path(source), run.path), target)
        except OSError as error:
            raise HubError(f"{source} cannot be sent: {error}") from error

    copy(run.path / WEIGHTS, folder / WEIGHTS)
    if run.evaluation is not None:
        copy(run.path / "eval.json", folder / "eval.json")
    for written in ("labels.json", "lists.json"):
        if (run.path / written).is_file():
            copy(run.path / written, folder / written)
    store = features_of(run) if (run.path / "features").is_dir() else None
    if features:
        if store is None:
            raise HubError(
                f"{run.path} has no features to send: collect them, or leave out --features",
                fix=f"sae features {quoted(run.path)}",
            )
        ignored = shutil.ignore_patterns(*NOT_SENT, "*.lock", ".lock")
        shutil.copytree(store.path, folder / "features", ignore=ignored, copy_function=copy)
        _without_model_path(store, folder / "features", known)
    if store is not None:
        density = store.table["density"].to_pylist()
        (folder / PICTURE).write_text(model_card.densities(density, store.record.tokens), encoding="utf-8")
    (folder / README).write_text(
        model_card.markdown(_card(run, name, run_json["model"], store is not None, features)),
        encoding="utf-8",
    )
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _paths_in(run: Run) -> dict[str, str]:
    """Return what run.json has as paths of this machine, which need not look like one -> the last part of each.

    An SAE, a model and a text may also be named as they are on the hub, or be the embedded ones: these names stay."""
    record, cfg = run.record, run.config
    paths = [record.imported.path if record.imported else None, cfg.start_from]
    models = [record.model, *([cfg.stream.model] if cfg.stream else [])]
    paths += [model for model in models if model != "embedded" and Path(model).exists()]
    if cfg.stream and is_named(cfg.stream.text.dataset):
        paths.append(cfg.stream.text.dataset)
    return {path: PureWindowsPath(path).name for path in paths if path and not is_hub_name(path)}


def _without_model_path(store: FeatureStore, sent: Path, known: Mapping[str, str]) -> None:
    """Replace the model's path in the copy `sent` of a features folder, where its model is a path, by the path's last part.

    What was measured on the features names them by the SHA-256 of features.json, which this changes: it is made to name the new one."""
    about = _object(sent / INDEX_OF_FEATURES)
    model = without_paths(about["model"], known)
    if model == about["model"]:
        return
    files.write_sealed(sent / INDEX_OF_FEATURES, {**about, "model": model})
    copy = FeatureStore(sent)
    for path in sent.glob("*.json"):
        content = read_json(path)
        if isinstance(content, dict) and content.get("features_sha256") == store.digest:
            content.pop(files.SEAL, None)
            files.write_sealed(path, {**content, "features_sha256": copy.digest})
    if (kept := kept_meanings(store)) is not None:
        save_meanings(copy, kept.words, kept.vectors, kept.of_latent)


def _object(path: Path) -> dict[str, object]:
    """Read a sealed JSON object and drop the seal, which no longer holds once paths are replaced."""
    content = files.read_json(path)
    content.pop(files.SEAL, None)
    return content


def without_paths(content: Any, known: Mapping[str, str] = MappingProxyType({})) -> Any:
    """Return JSON content in which every path of this machine is replaced by its last part, also within a sentence or a list.

    `known` are texts that are paths although nothing about them says it, and what stands for each."""
    if isinstance(content, dict):
        return {key: without_paths(value, known) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value, known) for value in content]
    if isinstance(content, str):
        if content in known:
            return known[content]
        return ", ".join(PATHS.sub(_last_part, part) for part in content.split(", "))
    return content


def _last_part(path: re.Match[str]) -> str:
    return PureWindowsPath(path[0]).name or path[0]  # splits at slashes and backslashes alike


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
