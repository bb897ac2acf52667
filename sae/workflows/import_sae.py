"""Import an SAE from another tool's files as a finished run folder, with a probe; and the origin of a run's SAE."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from activations import language_model
from activations.disk import files
from activations.errors import ForeignError, ModelError, RunError, StoreError, quoted
from activations.progress import Progress, no_progress
from activations.rows import Positions
from activations.store import Store
from activations.tokens import PackingConfig
from sae import config
from sae.architectures import SAE, ArchConfig
from sae.config import RunConfig
from sae.foreign import FORMATS, NOT_AN_SAE, Origin, other_dictionary_at
from sae.foreign.weights import near_twin
from sae.hub import is_hub_name
from sae.hub.fetch import Located, ignore_line, locate
from sae.runs.run import Run, made_by
from sae.runs.saved_sae import load_sae, save_sae

PROBE = "probe.safetensors"
ROWS = 16
SIZES = (1.0, 10.0, 100.0, 1000.0)  # of a probe's rows about b_dec, where there is no store to take rows from
ALWAYS = ("d_sae", "k")


def format_of(path: Path) -> str:
    """Return the format that a file or folder looks like. Raises ForeignError unless it is exactly one."""
    formats = [name for name, form in FORMATS.items() if form.recognises(path)]
    if len(formats) == 1:
        return formats[0]
    if not formats and (what := other_dictionary_at(path)):
        raise ForeignError(f"{path} is {what}: {NOT_AN_SAE}")
    looks = f"looks like {' and '.join(formats)}" if formats else "looks like none of the known formats"
    known = "; ".join(f"{name} ({form.TITLE})" for name, form in FORMATS.items())
    raise ForeignError(f"{path} {looks}: name the format before the path; there are {known}")


def _likelier_format(form: str, path: Path) -> str | None:
    """Return the format that files look like which could not be read as `form`, or None when they do look like `form`."""
    if FORMATS[form].recognises(path):
        return None
    return next((name for name in FORMATS if FORMATS[name].recognises(path)), None)


def import_sae(
    path: Path | str,
    out: Path,
    form: str | None = None,
    *,
    store: Path | None = None,
    hook: str | None = None,
    model: str | None = None,
    progress: Progress = no_progress,
    tell: Callable[[str], None] = ignore_line,
) -> Run:
    """Make a finished run at `out` of the SAE at `path`, whole or not at all.

    A path that begins with hf: names an SAE on the hub, which is fetched first (`sae.hub.fetch.locate`, which `progress`
    and `tell` are for). What was measured on a run of ours comes along where no `store` is given to measure it on.
    `store` is what is to be read with it; its model and one of its hook points are then the run's. `hook` and `model`
    go before what the files say. Raises ForeignError when the files cannot be read, no architecture here represents the SAE
    exactly, it does not fit the store, or the files say too little; RunError when there is something at `out`."""
    if out.exists() and (not out.is_dir() or files.is_taken(out)):
        raise RunError(f"{out} is not empty: choose another --out")
    located = locate(path, form, progress, tell) if is_hub_name(path) else None
    path = located.path if located else Path(path)
    if not path.exists():
        raise ForeignError(f"there is no file or folder {path}")
    form = (located.form if located else form) or format_of(path)
    try:
        sae, origin, notes = FORMATS[form].read(path)
    except ForeignError as error:
        other = _likelier_format(form, path)
        if other is None:
            raise
        raise ForeignError(
            f"{error}; this looks like {other}", fix=f"sae import {other} {quoted(path)} --out {quoted(out)}"
        ) from error
    for flag, value in (("hook", hook or origin.hook), ("model", model or origin.model)):
        if value is not None and not (isinstance(value, str) and value.isprintable()):
            raise ForeignError(f"{path}: the {flag} {value!r} is not a name")
    # Another tool's SAE is of all positions as far as its files tell
    positions = Run(path).config.positions if form == "workbench" else "all"
    opened = None if store is None else Store(store, positions)
    if opened is not None:
        hook = _hook_in(opened, hook or origin.hook, sae.d_model)
        if model not in (None, opened.spec.model):
            raise ForeignError(
                f"--model {model} is not the model of {opened.path}, {opened.spec.model}: leave it out"
            )
        if origin.model not in (None, opened.spec.model):
            notes = [*notes, f"the files name the model {origin.model}, the store {opened.spec.model}"]
    notes = [*notes, *unlike_training(origin.facts, opened)]
    hook, model = _belonging(path, origin, opened, hook, model)
    imported = _imported(path, form, origin, notes)
    if located:
        imported |= _on_the_hub(located)
    with files.new_folder(out) as folder:
        if form == "workbench" and opened is None:
            _copy_results(path, folder)
        save_sae(folder, sae, {"hook": hook, "model": model, "step": None})
        _write_probe(folder, opened, hook)
        record = run_record(sae, opened, hook, model, positions)
        files.write_sealed(folder / "run.json", {**record, "imported": imported})
    return Run(out)


def _on_the_hub(located: Located) -> dict[str, object]:
    """Return where on the hub an SAE was fetched from, as run.json records it: the path names the commit."""
    name, commit = located.name, located.commit
    hub = {"repository": name.repository, "path": name.path, "revision": name.revision, "commit": commit}
    return {"path": str(name._replace(revision=commit)), "hub": hub}


def unlike_training(facts: Mapping[str, Any], store: Store | None) -> list[str]:
    """Return how a store's windows differ from those an imported SAE was trained on, a line for each difference.

    Without a store, return what a harvest has to set for its windows to be alike. `facts` are those of the SAE's files."""
    packing = PackingConfig() if store is None else store.spec.packing
    notes, bos, context = [], facts.get("prepend_bos"), facts.get("context_size")
    if isinstance(bos, bool) and bos != packing.bos:
        trained, ours = ("with", "without") if bos else ("without", "with")
        whose = (
            f"sae harvest begins windows {ours} one" if store is None else f"the store has windows {ours} one"
        )
        flag = "--bos" if bos else "--no-bos"
        notes.append(f"trained on windows {trained} a BOS token at their start, {whose}: harvest with {flag}")
    if store is not None and type(context) is int and context != packing.context:
        notes.append(f"trained on windows of {context} tokens, those of the store have {packing.context}")
    return notes


def _copy_results(run: Path, folder: Path) -> None:
    """Copy what was measured on a run's SAE, and what people wrote about its latents."""
    for name in ("eval.json", "labels.json", "lists.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    if (run / "features").is_dir():
        shutil.copytree(run / "features", folder / "features")


def _hook_in(store: Store, hook: str | None, width: int) -> str:
    if hook is not None and hook not in store.spec.hooks:
        twin = near_twin(hook)
        if twin in store.spec.hooks and _same_place(store, hook, twin):
            hook = twin
    if hook is not None and hook not in store.spec.hooks:
        raise ForeignError(
            f"the SAE reads {hook}, {store.path} holds {', '.join(store.spec.hooks)}: harvest it, or if one of these is "
            f"the same place under another name, give that by --hook"
        )
    hook = hook or store.only_hook()
    if store.width(hook) != width:
        raise ForeignError(
            f"the SAE reads width {width}, {hook} in {store.path} has width {store.width(hook)}"
        )
    return hook


def _same_place(store: Store, hook: str, other: str) -> bool:
    """Return whether two names are one hook point of the store's model; False where it cannot be loaded to ask it."""
    try:
        places = language_model.load(store.spec.model, store.spec.model_revision).bridge.hook_dict
    except ModelError:
        return False
    return other in places and places.get(hook) is places[other]


def _belonging(
    path: Path, origin: Origin, store: Store | None, hook: str | None, model: str | None
) -> tuple[str, str]:
    """Return the hook point and the model that an SAE belongs to. Raises ForeignError when nothing says one of them."""
    hook, model = hook or origin.hook, store.spec.model if store else model or origin.model
    for flag, value, example in (("hook", hook, "blocks.8.hook_resid_pre"), ("model", model, "gpt2")):
        if value is None:
            raise ForeignError(
                f"{path} does not say its {flag}: give --store, or --{flag}, as in --{flag} {example}"
            )
    assert hook is not None
    assert model is not None
    return hook, model


def _imported(path: Path, form: str, origin: Origin, notes: list[str]) -> dict[str, object]:
    """Return the part of run.json that says where an imported SAE comes from (`records.Imported`)."""
    return {
        "format": form,
        "path": str(path),
        "sha256": hashes(path),
        "model": origin.model,
        "hook": origin.hook,
        "facts": origin.facts,
        "notes": notes,
    }


def hashes(path: Path) -> dict[str, str]:
    """Return the SHA-256 of an SAE's file, or of every file in its folder, by name."""
    read = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name: files.sha256(file) for file in read if file.is_file()}


def run_record(
    sae: SAE, store: Store | None, hook: str, model: str, positions: Positions = "all"
) -> dict[str, object]:
    """Return the content of the run.json of an SAE that was not trained here, but for `imported`. `positions` are those of the rows
    that it is for."""
    spec = None if store is None else store.spec
    settings = config.to_json(RunConfig(str(store.path) if store else "", hook, sae.cfg, positions=positions))
    settings |= {"arch": _settings_in_use(sae.cfg), "train": {}}
    return {
        **made_by(),
        "config": settings,
        "hook": hook,
        "d_model": sae.d_model,
        "input_scale": 1.0,
        "model": model,
        "model_revision": spec.model_revision if spec else None,
        "model_dtype": spec.model_dtype if spec else "float32",
        "weights_sha256": spec.weights_sha256 if spec else None,
        "store_fingerprint": store.fingerprint if store else None,
        **({"source": spec.source} if spec and spec.source != "bridge" else {}),
    }


def _settings_in_use(cfg: ArchConfig) -> Mapping[str, Any]:
    """Return the settings that matter when the SAE is used; settings of a training that was not ours stay at their defaults."""
    return {
        f.name: value for f in fields(cfg) if (value := getattr(cfg, f.name)) != f.default or f.name in ALWAYS
    }


@torch.no_grad()
def _write_probe(folder: Path, store: Store | None, hook: str) -> None:
    """Write what the saved SAE, read back, computes for the first rows of the store, or for random rows around b_dec."""
    sae = load_sae(folder)
    rows = (x for x, *_ in store.batches(hook, ROWS)) if store else iter(())
    x = next(rows, None)
    if x is None:
        noise = torch.randn(ROWS, sae.d_model, generator=torch.Generator().manual_seed(0))
        x = sae.b_dec + torch.tensor(SIZES).repeat_interleave(ROWS // len(SIZES))[:, None] * noise
    code = sae.encode(x)
    tensors = {"x": x, **code._asdict(), "x_hat": sae.decode(code)}
    del tensors["n_latents"]
    files.write_tensors(folder / PROBE, tensors, "sae-probe-1")


def origin_of(run: Run) -> Origin:
    """Return where a run's SAE belongs and how it was made, as it is written into another tool's files.

    Facts have the names SAELens gives them; an imported run hands on those it came with."""
    facts = {}
    with suppress(StoreError):  # what the store says is good to have, and not needed
        spec = run.store.spec
        facts = {
            "dataset_path": spec.dataset["dataset"],
            "context_size": spec.packing.context,
            "prepend_bos": spec.packing.bos,
        }
    return Origin(
        run.record.model, run.hook, facts | (run.record.imported.facts if run.record.imported else {})
    )
