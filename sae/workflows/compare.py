"""Two runs' latents matched with one another: worked out once, kept as compare-NAME.json in the first run's folder."""

from dataclasses import asdict
from pathlib import Path

from activations.disk import files
from activations.disk.schema import parse
from activations.errors import RunError, quoted
from activations.progress import Progress, no_progress
from activations.store import Store
from sae.evaluation.matching import LEVELS, compare
from sae.evaluation.reconstruction import held_out_rows
from sae.evaluation.similarity import codes
from sae.runs.records import Comparison
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_record

FORMAT = 1
TOKENS = 50_000  # held-out ones looked at, unless told otherwise
MEASURES = {"cosine": "decoder cosine", "activation": "activation correlation"}


def place(first: Run, second: Run) -> Path:
    """Return the file of the comparison of two runs. It is named after the second run, so runs of one name share it."""
    return first.path / f"compare-{second.name}.json"


def kept(first: Run, second: Run) -> Comparison | None:
    """Return the comparison that was written for the very SAEs these runs hold, or None.

    Raises RunError when a run is not finished, or the file is damaged or of a newer format."""
    path, digests = place(first, second), (first.digest, second.digest)
    if not path.exists():
        return None
    comparison: Comparison = read_record(path, "comparison", FORMAT, Comparison, fix=f"rm {quoted(path)}")
    if (comparison.first.weights_file_sha256, comparison.second.weights_file_sha256) != digests:
        return None
    _refuse_strange_latents(path, comparison, (first.config.arch.d_sae, second.config.arch.d_sae))
    return comparison


def match_runs(
    first: Run,
    second: Run,
    store: Store | None = None,
    tokens: int = TOKENS,
    near: float = LEVELS[0],
    absolute: bool | None = None,
    block: int = 1024,
    progress: Progress = no_progress,
) -> Comparison:
    """Match the latents of two finished runs on held-out tokens of a store, the first run's when left out.

    The result is not written to disk (`keep` does that).
    Raises RunError when a run is not finished or the two read other widths, StoreError when there is no store
    or it lacks a hook point."""
    refuse_other_widths(first, second)
    runs, names = (first, second), ("first", "second")
    sources = {
        name: {"run": str(run.path), "weights_file_sha256": run.digest}
        for name, run in zip(names, runs, strict=True)
    }
    store = store or first.store
    saes = [run.sae().to(device()) for run in runs]
    with progress("encode", 2 * min(tokens, held_out_rows(store)), "tokens") as advance:
        encoded = [
            codes(sae, store, run.hook, tokens, on_rows=advance) for sae, run in zip(saes, runs, strict=True)
        ]
    decoders = saes[0].W_dec, saes[1].W_dec
    with progress("match", len(MEASURES) * first.config.arch.d_sae, "latents") as advance:
        matchings = compare(decoders, (encoded[0], encoded[1]), near, absolute, block, advance)
    return parse(
        Comparison, {"format": FORMAT, **sources, "store_fingerprint": store.fingerprint, **matchings}
    )


def keep(first: Run, second: Run, comparison: Comparison) -> Path:
    """Write a comparison into the first run's folder, replacing an earlier one; return its path."""
    files.write_sealed(place(first, second), asdict(comparison))
    return place(first, second)


def _refuse_strange_latents(path: Path, comparison: Comparison, sizes: tuple[int, int]) -> None:
    """Raise RunError unless all lists are as long as the SAEs are wide, and name latents of the other SAE."""
    for measure in MEASURES:
        for side, size, others in (("first", *sizes), ("second", *sizes[::-1])):
            latents = comparison.by(measure).latents.get(side)
            if latents is None or any(len(lists) != size for lists in vars(latents).values()):
                raise RunError(
                    f"{path} is damaged: a list of the {side} run's latents does not have {size} entries",
                    fix=f"rm {quoted(path)}",
                )
            if not all(-1 <= latent < others for latent in latents.nearest + latents.partner):
                raise RunError(
                    f"{path} is damaged: a partner of the {side} run's latents is not among the other's {others}",
                    fix=f"rm {quoted(path)}",
                )


def refuse_other_widths(first: Run, second: Run) -> None:
    """Raise RunError unless both runs read activations of one width."""
    reads = [(run.record.d_model, f"({run.record.model}, {run.hook})") for run in (first, second)]
    if reads[0][0] != reads[1][0]:
        (width, where), (other, elsewhere) = reads
        raise RunError(
            f"{first.path} reads activations of width {width} {where}, {second.path} of width {other} {elsewhere}: "
            f"latents can be matched within one width only"
        )
