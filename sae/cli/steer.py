"""`sae steer RUN`: print what the model writes with latents turned up, down or off, beside what it writes unsteered."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from activations.disk import files
from activations.errors import ConfigError
from activations.generation import Sampling, prompt_ids
from activations.language_model import LanguageModel
from activations.progress import show_progress
from sae.cli import arguments, arms
from sae.features.feature import features_of
from sae.report.steering import FACTOR, with_units
from sae.runs.run import Run, device
from sae.steering.arms import ArmsConfig
from sae.steering.interventions import Calibration, Intervention, Mode, Unit
from sae.steering.measure import Comparison, compare
from sae.steering.steering import Steering, positions_of
from sae.steering.sweep import DoseResponse, SweepConfig, dose_response
from sae.workflows.find import condition

FORMAT = 1
FEATURE, SWEEP, COMPARE, FORECAST = "--feature", "--sweep", "--compare", "--forecast"
READ_BY = {
    **dict.fromkeys(("strength", "mode", "unit", "prompt", "chat", "positions", "first_token", "when", "keep_error",
                     "sampling", "seed", "texts", "sweep", "json"), (FEATURE,)),
    "sweeping": (SWEEP,),
    "comparing": (COMPARE,),
    "unrelated": (COMPARE,),
    "html": (COMPARE,),
    **dict.fromkeys(("unrelated_windows", "window_tokens", "arms_seed"), (COMPARE, FORECAST)),
}  # fmt: skip
"""What reads an option, or a group of them: in any other use it would be ignored, and is refused."""
MOST_TEXTS = 1000  # of a prompt: they are written side by side, and take memory
LABELS = {
    "concept": "concept in the text",
    "fires": "tokens it fires on",
    "peak": "its strongest there",
    "peak_gain": "gain of its peak tokens",
    "kl": "KL",
    "perplexity": "perplexity",
    "repetition": "repeated 3-grams",
    "distinct": "distinct tokens",
}
NOTE = (
    "concept: mean value of the latent where the unsteered model reads the text, as a share of its maximum on the corpus; "
    "KL(unsteered || steered) and gain (nats): along the unsteered text; perplexity: of the text under the unsteered model"
)


@dataclass(frozen=True)
class Steer:
    """Turn latents of a run up, down or off while the model writes; print the text beside the unsteered one.

    Example: sae steer runs/demo --feature 17 --strength 2 --prompt "I think that". Several: --feature 17 20
    --strength 2 -1 --mode add ablate. With --sweep: the dose-response table, beside random directions and other
    latents' directions that change activations by as much. The run needs features (`sae features`): strengths are multiples
    of the values measured there.

    With --compare: steering by a latent beside its rivals (difference in means, a probe's weights, the wrong sign, a prompt,
    random directions) at equal strength, on concepts given as labelled texts: sae steer runs/demo --compare glue_sst2 mine.csv.
    Writes arms/ into the run's folder and goes on after an interruption. docs/steering.md."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    feature: tuple[int, ...] = ()
    """Latents that are steered, by number."""
    strength: tuple[float, ...] = (1.0,)
    """Strength for each, or one for all: in multiples of the latent's own maximum, below 0 of its minimum."""
    mode: tuple[Mode, ...] = ("add",)
    """Change made to each latent, or one for all: add, set, clamp (to at most the strength), scale, ablate,
    project (FORMAT.md, Steering)."""
    unit: Unit = "max"
    """norm: strengths are shares of the activations' root mean square norm instead."""
    prompt: tuple[str, ...] = ("I think that",)
    """Beginning of the text; give several for several texts."""
    chat: bool = False
    """Lay the tokenizer's chat template around the prompt, for models that answer."""
    positions: str = "all"
    """Tokens steered: all, "after prompt" (from the prompt's last on), or numbers such as 3,4,5."""
    first_token: bool = False
    """Steer the first token (BOS) too."""
    when: str = ""
    """Steer only the tokens on which another latent fires: its number (17), a bound on its value (17>2.5, 17<-1; quote it),
    or monitor:NAME for a monitor of `sae find`."""
    keep_error: bool = True
    """Keep what the SAE does not reconstruct; otherwise its reconstruction takes the activations' place."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.95))
    seed: int = 0
    """Seed of the first text of each prompt; both texts of a pair are drawn with the same noise."""
    texts: int = 1
    """Texts for each prompt."""
    sweep: bool = False
    """Try a grid of strengths, and controls beside them."""
    sweeping: SweepConfig = field(default_factory=SweepConfig)
    json: Path | None = None
    """Also write everything into this file."""
    compare: tuple[str, ...] = ()
    """Concepts to compare arms on: tasks of sae-probes by name, or files with columns `text` and `label` of two labels; a
    concept is the label that comes second in the alphabet."""
    unrelated: tuple[str, ...] = ()
    """Further tasks or files, whose probes only watch what a comparison moves."""
    html: Path | None = None
    """Also write a comparison as one HTML file, which opens without a network."""
    forecast: int = 0
    """Measure the side effects of steering by so many latents, and learn to forecast those of the others (docs/steering.md)."""
    comparing: ArmsConfig = field(default_factory=ArmsConfig)

    def __post_init__(self) -> None:
        if self.compare and self.feature:
            raise ConfigError("--compare chooses the latents itself: leave --feature out")
        if self.forecast and (self.compare or self.feature):
            raise ConfigError("--forecast draws its latents itself: leave --feature and --compare out")
        if not self.compare and not self.feature and not self.forecast:
            raise ConfigError("name what to steer: latents with --feature, or concepts with --compare")
        if self.html is not None and self.html.is_dir():
            raise ConfigError(f"--html {self.html} is a folder: name a file, as in {self.html / 'arms.html'}")
        if not 1 <= self.texts <= MOST_TEXTS:
            raise ConfigError(f"texts = {self.texts} must lie between 1 and {MOST_TEXTS:,}")
        if not self.prompt:
            raise ConfigError("no prompt is given: give at least one")
        for name in ("strength", "mode"):
            if self.feature and len(getattr(self, name)) not in (1, len(self.feature)):
                raise ConfigError(
                    f"{name} is given {len(getattr(self, name))} times for {len(self.feature)} features: "
                    f"give one for all or one for each"
                )
        self._refuse_unread()  # reads the interventions, one for each feature

    def _refuse_unread(self) -> None:
        """Raise ConfigError for an option that was given and that nothing would read."""
        uses = {FEATURE: self.feature, SWEEP: self.sweep, COMPARE: self.compare, FORECAST: self.forecast}
        reading = {name for name, used in uses.items() if used}
        for group, name in arguments.changed(self):
            readers = READ_BY.get(name) or READ_BY.get(group, (*reading,))
            if not reading.intersection(readers):
                raise ConfigError(
                    f"--{name.replace('_', '-')} has no effect without {' or '.join(readers)}: leave it out"
                )
        undirected = self.sweep and not self.sweeping.random and not self.sweeping.shuffled
        if undirected and ("sweeping", "direction_seed") in arguments.changed(self):
            raise ConfigError(
                "--direction-seed has no effect with --random 0 and --shuffled 0, which draw no directions: leave it out"
            )
        if self.unit != "max" and self.feature and not any(each.has_unit for each in self.interventions):
            raise ConfigError(
                f"--unit belongs to the modes add, set and clamp: the strength of {' and '.join(self.mode)} is a bare factor"
            )
        if self.feature and self.sampling.temperature == 0:
            drawn = {"top_p", "top_k", "seed", "texts"}.intersection(
                name for _, name in arguments.changed(self)
            )
            if drawn:
                raise ConfigError(
                    f"--{min(drawn).replace('_', '-')} changes nothing at --temperature 0, where the likeliest token is taken: "
                    f"leave it out, or choose a temperature above 0"
                )

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The interventions, one for each feature."""
        n = len(self.feature)
        strengths = self.strength * (n if len(self.strength) == 1 else 1)
        modes = self.mode * (n if len(self.mode) == 1 else 1)
        rows = zip(self.feature, modes, strengths, strict=True)
        return tuple(Intervention(latent, mode, strength, self.unit) for latent, mode, strength in rows)

    @property
    def seeds(self) -> range:
        """The seeds of each prompt's texts."""
        return range(self.seed, self.seed + self.texts)


def main(args: list[str]) -> int:
    """Parse and run."""
    cfg = arguments.parse(Steer, "sae steer", args, tyro.conf.OmitArgPrefixes)
    run = Run(cfg.run)
    if cfg.compare:
        return arms.main(run, cfg.compare, cfg.unrelated, cfg.comparing, cfg.html)
    if cfg.forecast:
        return arms.forecast_main(run, cfg.forecast, cfg.comparing)
    interventions, positions = cfg.interventions, positions_of(cfg.positions)
    calibration = Calibration.of(features_of(run))
    sae = run.sae().to(device())
    steering = Steering(
        sae,
        run.hook,
        interventions,
        calibration,
        positions,
        cfg.first_token,
        cfg.keep_error,
        condition(run, cfg.when),
    )
    model = run.language_model()
    prompts = [prompt_ids(model, text, cfg.chat, run.first_tokens) for text in cfg.prompt]
    settings = {"run": str(run.path), "sae_sha256": run.digest, **steering.describe(), "prompts": list(cfg.prompt),
             "chat": cfg.chat, "sampling": asdict(cfg.sampling), "seeds": list(cfg.seeds)}  # fmt: skip
    if cfg.sweep:
        swept = _sweep(model, steering, prompts, cfg)
        results = {"sweep": asdict(cfg.sweeping), "points": swept.to_json(), "remarks": swept.remarks}
    else:
        results = {"comparisons": _compare(model, steering, prompts, cfg)}
    if cfg.json:
        files.write_json(cfg.json, {"format": FORMAT, **settings, **results})
        print(f"{cfg.json}: written")
    return 0


def _compare(
    model: LanguageModel, steering: Steering, prompts: list[list[int]], cfg: Steer
) -> list[list[dict[str, object]]]:
    comparisons = []
    for text, ids in zip(cfg.prompt, prompts, strict=True):
        pairs = compare(model, steering, ids, cfg.sampling, cfg.seeds, show_progress)
        show(text, pairs, cfg)
        _say([line for pair in pairs for line in pair.remarks])
        comparisons.append([pair.to_json() for pair in pairs])
    return comparisons


def _sweep(model: LanguageModel, steering: Steering, prompts: list[list[int]], cfg: Steer) -> DoseResponse:
    response = dose_response(model, steering, prompts, cfg.sampling, cfg.seeds, cfg.sweeping, show_progress)
    show_sweep(response, cfg)
    _say(response.remarks)
    return response


def _say(remarks: list[str]) -> None:
    """Print which parts of the steering had no effect, each once."""
    for line in dict.fromkeys(remarks):
        print(line)


def show(prompt: str, pairs: list[Comparison], cfg: Steer) -> None:
    """Print both texts of every seed side by side, then their numbers."""
    console = Console()
    texts = Table(title=Text(f"{_summary(cfg)} after {prompt!r}"), show_lines=True)
    for column in ("seed", "unsteered", "steered"):
        texts.add_column(column)
    for pair in pairs:
        texts.add_row(str(pair.seed), Text(pair.baseline.text), Text(pair.steered.text))
    console.print(texts)
    numbers = Table(caption=NOTE)
    for column in ("", "unsteered", "steered"):
        numbers.add_column(column, justify="right" if column else "left")
    for pair in pairs:
        if len(pairs) > 1:
            numbers.add_section()
            numbers.add_row(f"[bold]seed {pair.seed}[/bold]")
        for name, label in LABELS.items():
            numbers.add_row(
                label, *(_number(getattr(text.measures, name)) for text in (pair.baseline, pair.steered))
            )
    console.print(numbers)


def show_sweep(response: DoseResponse, cfg: Steer) -> None:
    """Print mean ± spread of every measure: strengths below each other, kinds of direction side by side."""
    curves = response.curves()
    table = Table(
        title=Text(f"dose and response: {_summary(cfg)}"),
        caption=f"mean ± standard deviation over texts; {NOTE}",
    )
    for column in ("strength x", *curves):
        table.add_column(column, justify="right")
    for name, label in LABELS.items():
        table.add_section()
        table.add_row(Text(label, style="bold", justify="left"))
        for points in zip(*curves.values(), strict=True):
            cells = (f"{_number(point.mean(name))} ± {_number(point.spread(name))}" for point in points)
            table.add_row(f"{points[0].dose:+g}", *cells)
    Console().print(table)


def _summary(cfg: Steer) -> str:
    parts = [
        (f"feature {i.latent}: {i.mode} {i.strength:g}", i.unit if i.has_unit else FACTOR)
        for i in cfg.interventions
    ]
    return with_units(parts)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
