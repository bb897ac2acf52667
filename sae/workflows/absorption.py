"""Measure feature absorption of a run's SAE on the first letters of the words of its language model's vocabulary."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from activations.disk import files
from activations.errors import SKLEARN_SEED, ConfigError, LabelError, check_seed, quoted
from activations.example_activations import ExampleActivations, Examples
from activations.language_model import LanguageModel
from activations.progress import Progress, no_progress
from sae.architectures import ARCHITECTURES, SAE, name_of
from sae.evaluation.absorption import absorbed, one_sided
from sae.probing.absorption import ABSORPTION, FORMAT, AbsorptionRecord, LetterAbsorption, Whose
from sae.probing.letters import LETTERS, LetterProbe, Words, f1, letter_probe, split_latents, words_of
from sae.probing.probes import Matrix
from sae.probing.score import encoded, turned
from sae.runs.run import Run, device
from sae.runs.saved_sae import read_results
from sae.workflows.probe import ProbeConfig, examples_of, model_of, require_scikit_learn

CONTEXT = 256  # tokens of a prompt, of which some 80 are used


@dataclass(frozen=True)
class AbsorptionConfig:
    """Settings of `sae absorption`; those left out have SAEBench's values."""

    words: int = 4000
    """Tokens of the vocabulary that are read, at most, behind some 75 others each; SAEBench reads all. A fifth of them tests."""
    most_latents: int = 10
    """Latents that may stand for a letter, at most."""
    jump: float = 0.03
    """F1 by which a further latent has to raise that of a letter's latents to count as one of them."""
    seed: int = 42
    """Seed of the words, their prompts and the random SAE."""

    def __post_init__(self) -> None:
        if self.words < 10 * len(LETTERS):
            raise ConfigError(f"words = {self.words} must be at least {10 * len(LETTERS)}, ten a letter")
        if self.most_latents < 1:
            raise ConfigError(f"most_latents = {self.most_latents} must be at least 1")
        if not 0 <= self.jump <= 1:
            raise ConfigError(f"jump = {self.jump} must lie in [0, 1]")
        check_seed(self.seed, most=SKLEARN_SEED)


@dataclass(frozen=True)
class _Read:
    """What the language model and one SAE make of the words, in units of the activations' root mean square."""

    x: Float[Tensor, "n D"]
    values: Matrix
    """The SAE's `one_sided` latents [n, F], CSR, as lengths of what they add."""
    directions: Float[Tensor, "F D"]
    """Their decoder rows at norm 1, in the space of x."""
    d_sae: int
    """Latents of the SAE itself: F, or F / 2 where they are signed."""


def absorption(
    run: Run,
    cfg: AbsorptionConfig | None = None,
    model: LanguageModel | None = None,
    progress: Progress = no_progress,
) -> AbsorptionRecord:
    """Measure how much of each first letter other latents have absorbed, and keep the result in the run's absorption.json.

    The language model reads each word once, behind ten spelled ones; activations stay in the user's cache, for all SAEs at that
    hook point. For each letter a probe on activations says which test words have it, k-sparse probes say which latents stand for
    it, and `sae.evaluation.absorption.absorbed` how much of it others carry; the same for a random SAE. Interrupted and called
    again with the same settings, it goes on with the letters that are missing. `model` is loaded when left out.

    Raises RunError when the run is not finished or has no language model, LabelError where the vocabulary has too few words,
    ConfigError without scikit-learn."""
    cfg = cfg or AbsorptionConfig()
    require_scikit_learn()
    record = _begun(run, cfg)
    if record.complete:
        return record
    model = model or model_of(run)
    words = words_of(model.vocabulary, cfg.words, cfg.seed)
    record = replace(record, words=len(words.texts))
    cache = ExampleActivations(_examples(run, model))
    cache.fill(model, words.prompts, progress)
    read = _read(run.sae().to(device()), cache.of(words.prompts), words.n_train, cfg.seed)
    done = {each.letter for each in record.letters["sae"]} | record.left_out.keys()
    with progress("letters", len(LETTERS), "letters", len(done)) as advance:
        for letter in LETTERS:
            if letter not in done:
                record = _with_letter(record, letter, words, read, cfg)
                files.write_sealed(run.path / ABSORPTION, asdict(record))
                advance(1, note=letter)
    record = replace(record, complete=True)
    files.write_sealed(run.path / ABSORPTION, asdict(record))
    return record


def read_absorption(run: Run) -> AbsorptionRecord | None:
    """Return the content of a run's absorption.json, or None without one, when it is of other weights, or of an older format that measured
    such an SAE otherwise. Raises RunError when damaged."""
    path, again = run.path / ABSORPTION, f"sae absorption {quoted(run.path)}"
    signed = ARCHITECTURES[name_of(run.config.arch)].signed
    record = read_results(
        path, "absorption", FORMAT, AbsorptionRecord, again, f"rm {quoted(path)}", lambda record: not signed
    )
    return record if record and record.sae_sha256 == run.digest else None


def _begun(run: Run, cfg: AbsorptionConfig) -> AbsorptionRecord:
    """Return the letters so far, or none where they are of other weights or settings."""
    config, record = json.loads(json.dumps(asdict(cfg))), read_absorption(run)
    if record and record.config == config:
        return record
    return AbsorptionRecord(FORMAT, run.digest, run.hook, config, 0, {"sae": [], "random sae": []})


def _examples(run: Run, model: LanguageModel) -> Examples:
    """Return how prompts become activations: as the texts of `sae probe` do, the last token's, with room for long prompts."""
    return examples_of(run, model, ProbeConfig(context=CONTEXT))


def _read(sae: SAE, x: Float[Tensor, "n D"], n_train: int, seed: int) -> Mapping[Whose, _Read]:
    """Return what the SAE and a random one make of the words."""
    scale = float(x[:n_train].double().square().mean()) ** -0.5
    d_sae, sae = sae.d_sae, one_sided(sae)
    turn, turned_x = turned(sae, x, seed)
    decoder = sae.W_dec.detach().float().cpu()
    norms = decoder.norm(dim=1)
    rows = decoder / norms.clamp_min(torch.finfo(torch.float32).tiny)[:, None]

    def values(of: Tensor) -> Matrix:
        code = encoded(sae, of)
        code.data *= scale * norms.numpy()[code.indices]
        # liblinear takes no other integers
        code.indices, code.indptr = code.indices.astype(np.int32), code.indptr.astype(np.int32)
        return code

    return {
        "sae": _Read(scale * x, values(x), rows, d_sae),
        # x - b_dec is (what it reads - b_dec) turned back, and so are the decoder rows
        "random sae": _Read(scale * x, values(turned_x), rows @ turn.T, d_sae),
    }


def _with_letter(
    record: AbsorptionRecord, letter: str, words: Words, read: Mapping[Whose, _Read], cfg: AbsorptionConfig
) -> AbsorptionRecord:
    """Return the record with one letter more, measured or left out with the reason."""
    from threadpoolctl import threadpool_limits

    has = words.letters == LETTERS.index(letter)
    n = words.n_train
    with threadpool_limits(1):  # products are small: threads that wait for each other take ten times as long
        try:
            probe = letter_probe(read["sae"].x[:n].numpy(), has[:n])
        except LabelError as error:
            return replace(record, left_out={**record.left_out, letter: error.message})
        recognised = has & (probe.scores(read["sae"].x.numpy()) > 0)
        recognised[:n] = False
        if not recognised.any():
            why = f"the probe recognises none of its {int(has[n:].sum())} test words"
            return replace(record, left_out={**record.left_out, letter: why})
        measured: dict[Whose, LetterAbsorption] = {
            whose: _letter(letter, one, probe, has, recognised, n, cfg) for whose, one in read.items()
        }
    letters: dict[Whose, list[LetterAbsorption]] = {
        whose: [*record.letters[whose], one] for whose, one in measured.items()
    }
    return replace(record, letters=letters)


def _letter(
    letter: str,
    read: _Read,
    probe: LetterProbe,
    has: Bool[np.ndarray, "n"],
    recognised: Bool[np.ndarray, "n"],
    n: int,
    cfg: AbsorptionConfig,
) -> LetterAbsorption:
    split = split_latents(read.values[:n], has[:n], read.values[n:], has[n:], cfg.most_latents, cfg.jump)
    rows = np.flatnonzero(recognised)
    values = torch.from_numpy(read.values[rows].toarray())
    feature = torch.from_numpy(probe.weights)
    result = absorbed(read.x[rows], values, read.directions, feature, split.latents)
    # both sides of a signed latent may stand for the letter: it is named once
    latents = list(dict.fromkeys(latent % read.d_sae for latent in split.latents))
    return LetterAbsorption(
        letter,
        int(has[n:].sum()),
        len(rows),
        f1(has[n:], probe.scores(read.x[n:].numpy()) > 0),
        latents,
        split.f1,
        result.fraction.mean().item(),
        result.full.double().mean().item(),
    )
