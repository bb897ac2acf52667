"""Find the latents that tell two sets of texts apart, save one as a monitor, and score texts with it."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.disk import files
from activations.errors import ConfigError, LabelError, RunError, check_seed, quoted
from activations.example_activations import run_examples, token_ids, without_sink
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae.architectures import ARCHITECTURES, SAE, name_of
from sae.code import SparseCode
from sae.probing import latents
from sae.probing.latents import Found, FoundLatent
from sae.probing.probes import Matrix, columns
from sae.probing.records import MONITOR_FORMAT, MONITORS, Monitor
from sae.probing.score import as_csr
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_record
from sae.steering.conditions import MONITOR, Condition, condition_of

LatentPooling = Literal["max", "mean", "last"]
NAME = re.compile(r"[\w][\w.-]{0,63}")
MOST_TEXTS = 20_000
WORDS = "the name is that of a file: letters, digits, dots, hyphens, at most 64"


@dataclass(frozen=True)
class FindConfig:
    """Settings of `sae find`: how a latent's values on a text's tokens become one number, and how examples are halved."""

    pooling: LatentPooling = "max"
    """`max` is the value on the token where the latent is largest, by size where latents are signed; `mean` the mean over the
    text's tokens, `last` its last token's.
    Where texts do not begin with a BOS, their first token does not count."""
    context: int = 128
    """Tokens that are read of a text, the BOS included: the last ones, where a text has more."""
    seed: int = 0
    """Seed of the half of the examples that ranks the latents; the other half tests them."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"context = {self.context} must be at least 2")
        check_seed(self.seed)


class Search(NamedTuple):
    """Two sets of texts, and what was found on them."""

    found: Found
    values: Matrix
    """Pooled value of each latent on each text [n, F], first set first; a scipy CSR array."""
    first: Bool[np.ndarray, "n"]
    config: FindConfig
    repeated: int
    """Texts left out because they came before, in the same set or the other."""


def find(
    run: Run,
    first: Sequence[str],
    second: Sequence[str],
    cfg: FindConfig | None = None,
    model: LanguageModel | None = None,
    sae: SAE | None = None,
    progress: Progress = no_progress,
) -> Search:
    """Rank a run's latents by how well each alone tells the first set of texts from the second (`latents.find`).

    Blank texts and texts that came before are left out; a text of both sets counts for the first. Model and SAE are loaded when
    left out. Raises LabelError for too few or too many texts, TextError for a text without tokens, and what loading raises."""
    cfg = cfg or FindConfig()
    given = [(_read_as(text), side) for texts, side in ((first, True), (second, False)) for text in texts]
    kept: dict[str, bool] = {}
    for text, side in given:
        if text:
            kept.setdefault(text, side)
    labels = np.array([*kept.values()], bool)
    sizes = int(labels.sum()), int((~labels).sum())
    if min(sizes) < latents.LEAST or len(kept) > MOST_TEXTS:
        raise LabelError(
            f"the sets have {sizes[0]} and {sizes[1]} different texts: each must have at least {latents.LEAST}, and both "
            f"together at most {MOST_TEXTS:,}"
        )
    values = pooled(run, [*kept], cfg.pooling, cfg.context, model, sae, progress)
    repeated = sum(bool(text) for text, _ in given) - len(kept)
    return Search(latents.find(values, labels, cfg.seed), values, labels, cfg, repeated)


def _read_as(text: str) -> str:
    """Return what the model reads of a text that latents are found on, or that a monitor scores: without white space around it,
    whose tokens would change the text's first token and be its last."""
    return text.strip()


@torch.no_grad()
def pooled(
    run: Run,
    texts: Sequence[str],
    pooling: LatentPooling,
    context: int,
    model: LanguageModel | None = None,
    sae: SAE | None = None,
    progress: Progress = no_progress,
) -> Matrix:
    """Return one value per text and latent [n, F], as a scipy CSR array. The model reads each text once. What is put before a text,
    and where nothing is, its first token do not count."""
    from scipy.sparse import csr_array, vstack

    model = model or run.language_model()
    sae = sae or run.sae().to(device())
    first = run.first_tokens
    if first is None:
        first = [] if model.vocabulary.bos is None else [model.vocabulary.bos]
    ids = [token_ids(model, text, first, context) for text in texts]
    rows: list[Matrix] = [None] * len(ids)
    with progress("find", sum(map(len, ids)), "tokens") as advance:
        for places, x, is_text in run_examples(model, run.hook, ids, len(first)):
            counted = without_sink(is_text, len(first))
            for place, own, mask in zip(places, x, counted, strict=True):
                chosen = own[mask][-1:] if pooling == "last" else own[mask]
                rows[place] = csr_array(_pool(sae.encode(chosen.to(sae.device)), pooling)[None])
            advance(sum(len(ids[place]) for place in places))
    return vstack(rows, format="csr")


def _pool(code: SparseCode, pooling: LatentPooling) -> Float[np.ndarray, "F"]:
    """Return one value per latent: the one of largest size, the mean or the only one over the rows of a code. No entry is a 0."""
    matrix = as_csr(code)
    if pooling == "mean":
        return np.asarray(matrix.mean(0)).ravel()
    high, low = (side.toarray().ravel() for side in (matrix.max(axis=0), matrix.min(axis=0)))
    return np.where(-low > high, low, high)


def save_monitor(run: Run, name: str, search: Search, latent: int, rate: float = 0.05) -> Monitor:
    """Save a latent that a search found as RUN/monitors/NAME.json, and return it.

    The threshold is the lowest that fires on at most a share `rate` of those examples of the second set that chose the
    latents; how often it then fires on either set is measured on the held-out half. Raises ConfigError for a name that cannot be
    a file's, a rate outside 0 to 1, a latent that the search did not find, or a name that is taken."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"a monitor cannot be called {name!r}: {WORDS}")
    if not 0 <= rate < 1:
        raise ConfigError(f"rate = {rate} must be at least 0 and below 1")
    path = run.path / MONITORS / f"{name}.json"
    if path.exists():
        raise ConfigError(
            f"{path} exists already: choose another name, or delete it", fix=f"rm {quoted(path)}"
        )
    found = next((each for each in search.found.latents if each.latent == latent), None)
    if found is None:
        raise ConfigError(f"latent {latent} is none of the {len(search.found.latents)} that the search found")
    monitor = _monitor(run, name, search, found, rate)
    files.write_sealed(path, asdict(monitor))
    return monitor


def _monitor(run: Run, name: str, search: Search, found: FoundLatent, rate: float) -> Monitor:
    scores = columns(search.values, np.array([found.latent]))[:, 0].astype(np.float64) * found.sign
    chosen_on, first = search.found.chosen_on, search.first
    others = scores[chosen_on & ~first]
    threshold = latents.threshold_for(others, rate)
    hits, alarms = scores[~chosen_on & first], scores[~chosen_on & ~first]
    return Monitor(
        MONITOR_FORMAT,
        name,
        run.digest,
        run.hook,
        found.latent,
        found.sign,
        search.config.pooling,
        search.config.context,
        threshold,
        rate,
        found.auc,
        float((hits > threshold).mean()),
        float((alarms > threshold).mean()),
        [len(hits), len(alarms)],
        len(others),
    )


def monitors(run: Run) -> list[str]:
    """Return the names of a run's monitors, in order."""
    return sorted(path.stem for path in (run.path / MONITORS).glob("*.json"))


def load_monitor(run: Run, name: str) -> Monitor:
    """Return a run's monitor. Raises RunError when it does not exist, is damaged, or is of other weights than the run's."""
    path = run.path / MONITORS / f"{name}.json"
    if not NAME.fullmatch(name) or not path.exists():
        known = ", ".join(monitors(run)) or "none yet"
        raise RunError(
            f"{run.path} has no monitor {name!r}; it has: {known}", fix=f"sae find {quoted(run.path)} --help"
        )
    monitor = read_record(path, "monitor", MONITOR_FORMAT, Monitor, f"rm {quoted(path)}")
    if monitor.sae_sha256 != run.digest:
        raise RunError(f"{path} watches another SAE than the one at {run.path}: find its latent again")
    why = ""
    if monitor.format < 2 and monitor.pooling != "last" and not run.first_tokens:
        why = "counts the first token of a text unless that is a BOS, and " + (
            "this run has none" if run.first_tokens == [] else "the store that would tell is gone"
        )
    elif monitor.format < 3 and monitor.pooling == "max" and ARCHITECTURES[name_of(run.config.arch)].signed:
        why = "leaves out the negative values of the run's signed latents"
    if why:
        raise RunError(
            f"{path} is of monitor format {monitor.format}, whose threshold {why}: delete the file and find its latent again",
            fix=f"rm {quoted(path)}",
        )
    return monitor


def condition(run: Run, text: str) -> Condition | None:
    """Return the condition that a user typed, for steering: that of `condition_of`, or a monitor's as monitor:NAME.

    A monitor's holds at every token on which the latent that it watches is above the monitor's threshold: on which sign times
    its value is, so that a monitor of sign -1 holds where -value > threshold. That includes every token on which the latent does
    not fire when the threshold is below 0. Raises ConfigError for a text that is no condition, RunError for a monitor that the run
    does not have."""
    name = text.strip().removeprefix(MONITOR)
    if name == text.strip():
        return condition_of(text)
    monitor = load_monitor(run, name)
    return Condition(monitor.latent, monitor.sign, monitor.threshold)


def monitor_texts(
    run: Run,
    monitor: Monitor | str,
    texts: Sequence[str],
    model: LanguageModel | None = None,
    sae: SAE | None = None,
    progress: Progress = no_progress,
) -> Float[Tensor, "n"]:
    """Return each text's score under a monitor or the one of that name; it fires where the score is above `threshold`.

    White space around a text does not count, as it did not when the latent was found. Raises TextError for a blank text."""
    if isinstance(monitor, str):
        monitor = load_monitor(run, monitor)
    read = [_read_as(text) for text in texts]
    values = pooled(run, read, monitor.pooling, monitor.context, model, sae, progress)
    own = columns(values, np.array([monitor.latent]))[:, 0] * monitor.sign
    return torch.from_numpy(own.astype(np.float64))
