"""From an SAE's name on the hub, or its folder, to a run that the app can show: fetch, harvest, import, features, evaluation."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from activations import language_model
from activations.errors import ConfigError, ForeignError, RunError, WorkbenchError
from activations.harvest import HarvestConfig, begun_in
from activations.progress import Progress, no_progress
from activations.store import Store
from activations.text import TextConfig, described, make_ready
from activations.tokens import PackingConfig
from sae.features.collect import FeaturesConfig
from sae.foreign import FORMATS, Origin
from sae.hub import is_hub_name, parse_name
from sae.hub.fetch import ignore_line, locate
from sae.runs.records import Imported
from sae.runs.run import Run, device
from sae.workflows.evaluate import evaluate
from sae.workflows.features import collect_features
from sae.workflows.harvest import harvest_store
from sae.workflows.import_sae import format_of, hashes, import_sae

LONGEST = 80  # characters of a folder's name
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Open:
    """Look at an SAE: fetch it, run its language model over a text, collect what its latents fire on, measure it, and
    open the app.

    Example: sae open hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71 --text notes.txt. The run goes to
    runs/NAME and its activations to stores/NAME. After an interruption the same command continues; what is finished is not done
    again. It takes the name of an SAE on the hub, a run, or another tool's folder or file."""

    what: tyro.conf.Positional[str]
    """hf:OWNER/REPOSITORY[/PATH][@REVISION], or a folder or file."""
    text: str = "embedded"
    """Text to look at it on, as sae harvest --dataset takes it; of a .txt or .md file each paragraph is a document."""
    model: str | None = None
    """Language model, where the SAE's own files do not name it or it lies elsewhere."""
    hook: str | None = None
    """Hook point it reads, where its files do not say it."""
    tokens: int = 100_000
    """Tokens to look at, at most."""
    context: int = 128
    """Tokens in a window."""
    windows: int = 16
    """Held-out windows for the language model's own loss; 0 leaves it out."""
    out: Path | None = None
    """Folder of the run; runs/NAME when left out."""
    app: bool = True
    """Open the app when all is done."""

    def __post_init__(self) -> None:
        for name in ("tokens", "context"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must be at least 1")


def prepare(command: Open, progress: Progress = no_progress, tell: Tell = ignore_line) -> Run:
    """Do everything the app's pages need that has not been done yet, and return the run.

    `tell` is called with a line of text before something large is fetched, and for what could not be done."""
    text = TextConfig(command.text, document="paragraph")
    make_ready(text)
    out = command.out or Path("runs") / folder_name(command.what)
    if is_run(Path(command.what)) and Run(command.what).config.store:
        out = Path(command.what)
    elif is_run(out):
        _refuse_other(command, Run(out), text)
    run = Run(out) if is_run(out) else None
    model = None
    if run is None:
        run, model = _import(command, out, text, progress, tell)
    model = model or run.language_model()
    collect_features(run, model, FeaturesConfig(), progress)
    if run.evaluation is None:
        try:
            evaluate(run, run.sae().to(device()), model, command.windows, progress=progress)
        except WorkbenchError as error:  # the pages can do without
            tell(f"not evaluated: {error}")
    return run


def is_run(path: Path) -> bool:
    """Return whether there is a finished run at a path."""
    return (path / "run.json").is_file() and (path / "sae.json").is_file()


def folder_name(what: str) -> str:
    """Return a folder's name for an SAE: its owner, repository and path on the hub, or the last part of its path here."""
    if is_hub_name(what):
        name = parse_name(what)
        what = "-".join([name.repository, name.path, name.revision or ""])
    else:
        what = Path(what).resolve().name
    plain = re.sub(r"[^\w.]+", "-", what).strip("-.")
    return plain if len(plain) <= LONGEST else plain[-LONGEST:].lstrip("-.")


def _refuse_other(command: Open, run: Run, text: TextConfig) -> None:
    """Raise RunError unless a run was made of the SAE, the text and the settings that are asked for."""
    origin, spec = run.record.imported, run.store.spec
    if is_hub_name(command.what):
        name = parse_name(command.what)
        asked = {"repository": name.repository, "path": name.path, "revision": name.revision}
        hub = origin.hub if origin else None
        same = hub is not None and {key: hub.get(key) for key in asked} == asked
    else:
        same = origin is not None and not origin.hub and _is_of(run, origin, Path(command.what))
    if not same:
        raise RunError(
            f"{run.path} is of another SAE ({origin.path if origin else 'trained here'}): choose another --out"
        )
    for what, here, wanted in (
        ("text", spec.dataset, described(text)),
        ("--tokens", _tokens_asked(run.store, command), command.tokens),
        ("--context", spec.packing.context, command.context),
        ("--model", spec.model, command.model or spec.model),
        ("--hook", run.hook, command.hook or run.hook),
    ):
        if here != wanted:
            shown = (
                (here["dataset"], wanted["dataset"])
                if isinstance(here, dict) and isinstance(wanted, dict)
                else (here, wanted)
            )
            raise RunError(
                f"{run.path} was opened with another {what}, {shown[0]} and not {shown[1]}: choose another --out"
            )


def _is_of(run: Run, origin: Imported, path: Path) -> bool:
    """Return whether an imported run is of the SAE at a path, wherever its files lay then and whichever the working folder was.

    Raises RunError where they lay there and have changed since."""
    lay_there = Path(origin.path).resolve() == path.resolve()
    if not path.exists():
        return lay_there
    unchanged = origin.sha256.items() <= hashes(path).items()
    if lay_there and not unchanged:
        raise RunError(f"{path} has changed since {run.path} was made of it: choose another --out")
    return unchanged and (lay_there or bool(origin.sha256))


def _tokens_asked(store: Store, command: Open) -> int:
    """Return the number of tokens that a store is of, or the one asked for where the store has what such a harvest has."""
    windows = command.tokens // store.spec.packing.context
    same = store.windows == windows or (store.text_ended and store.windows < windows)
    return command.tokens if same else store.tokens


def _import(
    command: Open, out: Path, text: TextConfig, progress: Progress, tell: Tell
) -> tuple[Run, language_model.LanguageModel]:
    """Fetch an SAE, harvest the activations it reads, and import it as a run on that store.

    Returns the run and its language model, which computes in float32 whatever the harvest ran in."""
    form, path = None, Path(command.what)
    if is_hub_name(command.what):
        located = locate(command.what, None, progress, tell)
        form, path = located.form, located.path
    elif not path.exists():
        raise ForeignError(
            f"there is no file or folder {path}: name one, or an SAE on the hub by hf:OWNER/REPOSITORY"
        )
    form = form or format_of(path)
    origin = FORMATS[form].read(path).origin
    hook, name = command.hook or origin.hook, command.model or model_of(origin)
    for flag, value, example in (("hook", hook, "blocks.8.hook_resid_pre"), ("model", name, "gpt2")):
        if value is None:
            raise ForeignError(
                f"{command.what} does not say its {flag}: give --{flag}, as in --{flag} {example}"
            )
    assert hook is not None
    assert name is not None
    out_store = Path("stores") / out.name
    model = language_model.load(name, None, begun_in(out_store, "auto"), str(device()))
    config = HarvestConfig(
        hooks=hook, tokens=command.tokens, text=text, packing=PackingConfig(context=command.context)
    )
    store = harvest_store(model, out_store, config, progress)
    run = import_sae(command.what, out, form, store=store.path, hook=hook, progress=progress, tell=tell)
    return run, model if model.plain.dtype == torch.float32 else run.language_model()


def model_of(origin: Origin) -> str | None:
    """Return the hub's name of an SAE's model: some files have the one that TransformerLens gives it."""
    if origin.model is None or "/" in origin.model:
        return origin.model
    from transformer_lens.supported_models import get_official_model_name

    try:
        return get_official_model_name(origin.model)
    except ValueError:
        return origin.model
