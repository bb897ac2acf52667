"""`sae open`: from an SAE's name on the hub, or its folder, to the app's pages."""

import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from activations import language_model
from activations.errors import ConfigError, ForeignError, WorkbenchError
from activations.harvest import HarvestConfig
from activations.text import TextConfig, make_ready
from activations.tokens import PackingConfig
from sae.cli import app, arguments, evaluate, features, harvest, import_
from sae.cli.progress import progress
from sae.features.collect import FeaturesConfig
from sae.foreign import FORMATS, Origin
from sae.hub.fetch import locate
from sae.hub.names import is_hub_name, parse
from sae.runs.run import Run, device
from sae.workflows.import_sae import format_of, import_sae

LONGEST = 80  # characters of a folder's name


@dataclass(frozen=True)
class Open:
    """Look at an SAE: fetch it, run its language model over a text, collect what its latents fire on, measure it, and
    open the app.

    Example: sae open hf:google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71 --text notes.txt. The run goes to
    runs/NAME and its activations to stores/NAME. Interrupted, the same command goes on; what is finished is not done
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


def main(args: list[str]) -> int:
    """Parse and run."""
    command = arguments.parse(Open, "sae open", args)
    run = prepare(command)
    print(f"{run.path} is ready: sae app {run.path}")
    if command.app:
        return app.main([str(run.path)])
    return 0


def prepare(command: Open) -> Run:
    """Do all that the pages need and is not done yet, and return the run."""
    text = TextConfig(command.text, document="paragraph")
    make_ready(text)
    out = command.out or Path("runs") / folder_name(command.what)
    if is_run(Path(command.what)) and Run(command.what).config.store:
        out = Path(command.what)
    run = Run(out) if is_run(out) else None
    model = None
    if run is None:
        run, model = _import(command, out, text)
    model = model or run.language_model()
    features.collect(run, model, FeaturesConfig())
    if run.evaluation is None:
        try:
            evaluate.evaluate(run, run.sae().to(device()), model, command.windows)
        except WorkbenchError as error:  # the pages can do without
            print(f"not evaluated: {error}")
    if run.evaluation is not None:
        evaluate.show(run)
    return run


def is_run(path: Path) -> bool:
    """Whether there is a finished run at a path."""
    return (path / "run.json").is_file() and (path / "sae.json").is_file()


def folder_name(what: str) -> str:
    """Return a folder's name for an SAE: its repository and path, or the last part of its path here."""
    if is_hub_name(what):
        name = parse(what)
        what = "-".join([name.repository.partition("/")[2], name.path, name.revision or ""])
    else:
        what = Path(what).resolve().name
    plain = re.sub(r"[^\w.]+", "-", what).strip("-.")
    return plain if len(plain) <= LONGEST else plain[-LONGEST:].lstrip("-.")


def _import(command: Open, out: Path, text: TextConfig) -> tuple[Run, language_model.LanguageModel]:
    """Fetch an SAE, harvest what it reads, and make a run of it over that store."""
    form, path = None, Path(command.what)
    if is_hub_name(command.what):
        located = locate(command.what, None, progress, import_.tell)
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
    place = device()
    model = language_model.load(name, None, language_model.precision("auto", place), str(place))
    config = HarvestConfig(
        hooks=hook, tokens=command.tokens, text=text, packing=PackingConfig(context=command.context)
    )
    store = harvest.run(model, Path("stores") / out.name, config)
    run = import_sae(
        command.what, out, form, store=store.path, hook=hook, progress=progress, tell=import_.tell
    )
    import_.show(run)
    return run, model


def model_of(origin: Origin) -> str | None:
    """Return the hub's name of an SAE's model: some files have the one that TransformerLens gives it."""
    if origin.model is None or "/" in origin.model:
        return origin.model
    from transformer_lens.supported_models import get_official_model_name

    try:
        return get_official_model_name(origin.model)
    except ValueError:
        return origin.model
