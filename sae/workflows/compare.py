"""Two runs' latents matched with one another: worked out once, kept as compare-NAME.json in the first run's folder."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from activations.disk import files
from activations.disk.schema import check
from activations.errors import RunError
from activations.progress import Progress, no_progress
from activations.store import Store
from sae.evaluation.matching import LEVELS, compare
from sae.evaluation.reconstruction import held_out_rows
from sae.evaluation.similarity import codes
from sae.runs.records import Comparison, Latents
from sae.runs.run import Run, device, read_json

FORMAT = 1
TOKENS = 50_000  # held-out ones looked at, unless told otherwise
MEASURES = {"cosine": "decoder cosine", "activation": "activation correlation"}


def place(first: Run, second: Run) -> Path:
    """Where the comparison of these two is kept. Another run of the second's name shares the place."""
    return first.path / f"compare-{second.name}.json"


def kept(first: Run, second: Run) -> dict[str, Any] | None:
    """The comparison as it was kept, if it is of the very SAEs these runs hold; else None.

    Raises RunError when a run is not finished, or the file is damaged or of a newer format."""
    path, digests = place(first, second), (first.digest, second.digest)
    if not path.exists():
        return None
    found = read_json(path, fix=f"rm {path}")
    try:
        if found["format"] > FORMAT:
            raise RunError(
                f"{path} is of comparison format {found['format']}, this release reads up to {FORMAT}"
            )
        of = tuple(found[name]["weights_file_sha256"] for name in ("first", "second"))
        if of != digests:
            return None
        check(Comparison, found)
        _refuse_strange_latents(found, (first.config.arch.d_sae, second.config.arch.d_sae))
    except (KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error!r}", fix=f"rm {path}") from error
    return found


def match_runs(
    first: Run,
    second: Run,
    store: Store | None = None,
    tokens: int = TOKENS,
    near: float = LEVELS[0],
    absolute: bool | None = None,
    block: int = 1024,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Match the latents of two finished runs on held-out tokens of a store, the first run's when left out.

    The result is what FORMAT.md says of compare-NAME.json, and is not yet written (`keep`).
    Raises RunError when a run is not finished or the two read other widths, StoreError when there is no store
    or it lacks a hook point."""
    refuse_other_widths(first, second)
    runs, names = (first, second), ("first", "second")
    about = {
        name: {"run": str(run.path), "weights_file_sha256": run.digest}
        for name, run in zip(names, runs, strict=True)
    }
    store = store or first.store
    saes = [run.sae().to(device()) for run in runs]
    with progress("encode", 2 * min(tokens, held_out_rows(store)), "tokens") as advance:
        both = [
            codes(sae, store, run.hook, tokens, on_rows=advance) for sae, run in zip(saes, runs, strict=True)
        ]
    decoders = saes[0].W_dec, saes[1].W_dec
    with progress("match", len(MEASURES) * first.config.arch.d_sae, "latents") as advance:
        found = compare(decoders, (both[0], both[1]), near, absolute, block, advance)
    return {"format": FORMAT, **about, "store_fingerprint": store.fingerprint, **found}


def keep(first: Run, second: Run, found: dict[str, Any]) -> Path:
    """Write a comparison into the first run's folder, in the place of one that was there."""
    files.write_sealed(place(first, second), found)
    return place(first, second)


def _refuse_strange_latents(found: dict[str, Any], sizes: tuple[int, int]) -> None:
    """Raise TypeError unless all lists are as long as the SAEs are wide, and name latents of the other one."""
    for measure in MEASURES:
        for side, size, others in (("first", *sizes), ("second", *sizes[::-1])):
            lists = found[measure]["latents"][side]
            if any(len(lists[name.name]) != size for name in fields(Latents)):
                raise TypeError(f"a list of the {side}'s {size} latents has another length")
            if not all(-1 <= latent < others for latent in lists["nearest"] + lists["partner"]):
                raise TypeError(f"the {side}'s partners are not all among {others} latents")


def refuse_other_widths(first: Run, second: Run) -> None:
    """Raise RunError unless both runs read activations of one width."""
    reads = [(run.record.d_model, f"({run.record.model}, {run.hook})") for run in (first, second)]
    if reads[0][0] != reads[1][0]:
        (width, where), (other, elsewhere) = reads
        raise RunError(
            f"{first.path} reads activations of width {width} {where}, {second.path} of width {other} {elsewhere}: "
            f"latents can be matched within one width only"
        )
