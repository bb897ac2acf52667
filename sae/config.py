"""Settings of a training run as frozen dataclasses: RunConfig and TrainConfig. Flags, run.json and Python arguments are their fields."""

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from activations.disk.schema import build
from activations.errors import ConfigError, RunError, check_seed
from activations.streaming.folder import StreamConfig
from sae.architectures import ARCHITECTURES, ArchConfig, TopKConfig, name_of

LoggerName = Literal["tensorboard", "wandb"]
Settings = dict[str, Any]
"""Settings as JSON or TOML has them, before they are checked: which fields there are, and of which types, depends on the
architecture and on the release that wrote them."""
NEW = (
    "shuffle_tokens",
    "stream",
    "start_from",
    "loss",
)  # unknown to 0.1.0, which still reads the runs that leave them out
NEW_IN_TRAIN = {
    "held_out_every": 100,
    "precision": "float32",
    "frozen": None,
}  # likewise; left out at these values
DROPPED = ("checkpoint_every",)  # steps between checkpoints, before these were written by time
Precision = Literal["auto", "float32", "bfloat16"]
FrozenPart = Literal["decoder", "soft-decoder", "encoder"]
LARGEST_SEED = 2**63 - 1
# The least training between two checkpoints, in multiples of the time that writing the last one took.
TRAINED_PER_SAVE = 20
GAO = 2e-4  # for 2^14 latents
LONG = 100_000
STEPS_POWER = -0.38
HIGHEST = 8e-3  # the best of the shortest runs measured, 100 steps of 1,024 latents


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training; those left out are derived from the data and the dictionary."""

    steps: int | None = None
    """Optimizer steps; when left out, one pass over the store's training rows, but at least 2000."""
    batch: int = 2048
    """Rows (tokens) per step, at least 2: the error is relative to a batch's variance, which one row does not have."""
    lr: float | Literal["auto"] | None = None
    """Peak learning rate of Adam; when left out, what suits the dictionary's width, the run's length and the method, by a
    fit to measurements (docs/methods/README.md). auto measures it, on short trials with the run's first batches."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; when left out, a twentieth of all, at most 1000."""
    decay_share: float = 0.2
    """Share of all steps, at the end, over which the learning rate falls linearly to 0."""
    clip_norm: float = 1.0
    """Largest norm of the gradient. A part that learns apart from the rest, such as a probe, is clipped by itself."""
    dead_after_tokens: int | None = None
    """Tokens without firing after which a latent is dead; when left out, 10 million, or a tenth of the run's
    tokens when that is less (10 million: Gao et al. 2024, appendix A.2)."""
    ema: float | None = None
    """Save an exponential moving average of the weights, of this rate a step, such as 0.999 (Gao et al. 2024, appendix A).
    It reaches back some 1 / (1 - ema) steps, which should be a small share of the run. When left out, the last weights."""
    scale_inputs: bool = True
    """Scale activations to unit mean square per dimension in training; folded into the saved weights."""
    precision: Precision = "auto"
    """Precision of the products that latents are selected by, and of AuxK's; values of the selected latents, their gradients
    and the optimizer are in float32. auto: bfloat16 where that is faster, as measured before the first step; a run that goes
    on keeps what it has begun with."""
    frozen: FrozenPart | None = None
    """Keep a part of the SAE as it started, for a control (`sae trust`): decoder, all of W_dec; soft-decoder, each decoder row
    within a cosine of 0.8 of its start; encoder, the encoder's weights, while biases and thresholds learn."""
    seed: int = 0
    """Seed of the initialisation and of the order of rows."""
    log_every: int = 10
    """Steps between rows of log.jsonl."""
    held_out_every: int = 100
    """Steps between measurements of FVU and L0 on held-out rows, as many as a batch has: the next row of log.jsonl has them,
    and so has the last. 0 leaves them out. The rows do not change the training."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints, more where writing one takes over a twentieth of that; 0 writes one after every step."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "log_every",
            "keep_checkpoints",
            "dead_after_tokens",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"train.{name} = {value} must be at least 1")
        if self.batch < 2:
            raise ConfigError(
                f"train.batch = {self.batch} must be at least 2: the loss is relative to a batch's variance, which one row "
                f"does not have"
            )
        check_seed(self.seed, "train.seed", LARGEST_SEED)
        if not 0 <= self.decay_share <= 1:
            raise ConfigError(f"train.decay_share = {self.decay_share} must lie between 0 and 1")
        for name in ("lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and value != "auto" and not 0 < value < math.inf:
                raise ConfigError(f"train.{name} = {value} must be a number above 0")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"train.ema = {self.ema} must lie between 0 and 1")
        if self.held_out_every < 0:
            raise ConfigError(
                f"train.held_out_every = {self.held_out_every} must be at least 0, which leaves the measurements out"
            )
        if not 0 <= self.checkpoint_minutes < math.inf:
            raise ConfigError(
                f"train.checkpoint_minutes = {self.checkpoint_minutes} must be a number of at least 0"
            )
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"train.warmup_steps = {self.warmup_steps} must be at least 0")

    def resolved(self, rows: int, arch: ArchConfig) -> "TrainConfig":
        """Fill in everything left out, for a store of `rows` training rows; a rate to be measured stays `auto`."""
        steps = self.steps or max(rows // self.batch, 2000)
        if (self.warmup_steps or 0) > steps:
            raise ConfigError(
                f"train.warmup_steps = {self.warmup_steps} is more than the {steps} steps of the run: its learning rate "
                f"would never be reached"
            )
        l0 = arch.expected_l0()
        if not l0.assumed and self.batch * l0.value < 1:
            raise ConfigError(
                f"{l0.value:g} latents a row keep none in a batch of train.batch = {self.batch} rows: nothing would be learned; "
                f"choose at least {1 / self.batch:g} or a larger batch"
            )
        filled = {
            "steps": steps,
            "lr": self.lr or arch.rate * peak_rate(arch.d_sae, steps),
            "warmup_steps": min(steps // 20, 1000) if self.warmup_steps is None else self.warmup_steps,
            "dead_after_tokens": self.dead_after_tokens or min(10_000_000, max(1, steps * self.batch // 10)),
        }
        return TrainConfig(**{**self.__dict__, **filled})

    def seconds_to_next_checkpoint(self, last_save: float = 0.0) -> float:
        """Return how many seconds to train before the next checkpoint when writing the last one took `last_save` seconds.

        The seconds are at least 20 times `last_save`, so that writing takes at most a twentieth of the training time."""
        every = 60 * self.checkpoint_minutes
        return max(every, TRAINED_PER_SAVE * last_save) if every else 0.0


@dataclass(frozen=True)
class RunConfig:
    """Settings of a whole run: the store, the architecture and the training."""

    store: str = ""
    """Activation store to train on, as `sae harvest` makes it; empty for a run on a stream."""
    hook: str | None = None
    """Hook point to read; may be left out when the store has only one."""
    arch: ArchConfig = field(default_factory=TopKConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loggers: tuple[LoggerName, ...] = ()
    """More places for metrics, beside log.jsonl."""
    positions: Literal["all", "last"] = "all"
    """Rows to train on: all, or the last one of each document in each window (as AdaptiveK's paper does, with texts
    of one window each: `sae harvest --packing document --separator none`)."""
    labels: str | None = None
    """Name of the store's labels to learn from (AdaptiveK), as `sae store show` lists them; when left out, those of the
    harvest, or else the only set. Of a stream: labels as `sae harvest` computes them, by default `surprise`."""
    shuffle_tokens: int | None = None
    """Read the text in its order and shuffle this many tokens together at a time; when left out, the rows of the whole store
    are shuffled, and those of 262,144 tokens of a stream."""
    stream: StreamConfig | None = None
    """Make the activations while training, instead of reading a store."""
    start_from: str | None = None
    """Folder of a run, or of an imported SAE, whose weights training starts from: one of the same method and sizes."""

    loss: Literal["kl"] | None = None
    """What is minimised beside the method's own loss: kl, the divergence that the reconstruction causes in the language
    model's predictions, as `sae finetune` does it. The run then starts from another one, and reads whole windows of a store."""

    def __post_init__(self) -> None:
        if self.loss and not (self.store and self.start_from):
            raise ConfigError(f"loss = {self.loss} needs a store and a run to start from")
        if self.shuffle_tokens is not None and self.shuffle_tokens < 1:
            raise ConfigError(f"shuffle_tokens = {self.shuffle_tokens} must be at least 1")


def to_json(config: RunConfig) -> Settings:
    """Return the configuration as JSON content, with the architecture's name; without newer settings that are left out."""
    content = {"architecture": name_of(config.arch), **asdict(config)}
    train = content["train"]
    content["train"] = {name: train[name] for name in train if train[name] != NEW_IN_TRAIN.get(name)}
    return {name: value for name, value in content.items() if value is not None or name not in NEW}


def from_json(content: Settings) -> RunConfig:
    """Inverse of `to_json`. Raises RunError for a field this release does not know, or a value of a wrong type.

    Settings of training that earlier releases had and that change no result are left out (FORMAT.md)."""
    try:
        own = {name: value for name, value in content.items() if name not in ("architecture", "arch")}
        own["train"] = {name: value for name, value in own.get("train", {}).items() if name not in DROPPED}
        own["train"] = {**NEW_IN_TRAIN, **own["train"]}
        arch = arch_from_json(content["architecture"], content["arch"], content.get("train", {}).get("batch"))
        return dataclasses.replace(build(RunConfig, own), arch=arch)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunError(f"the run's configuration cannot be read: {error}") from error


def arch_from_json(name: str, fields: Settings, batch: int | None = None) -> ArchConfig:
    """Return an architecture's configuration, that of an older release as this one has it; `batch` is the run's, if known.

    Raises RunError when this release has no such architecture or the package that has it is broken,
    TypeError for fields that are not its own."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise RunError(f"architecture {name!r} is unknown here: this release has {', '.join(ARCHITECTURES)}")
    try:
        kind = ARCHITECTURES[name].config
    except ConfigError as error:
        raise RunError(error.message, fix=error.fix) from error
    return build(kind, kind.upgraded(fields, batch) if isinstance(fields, dict) else fields)


def peak_rate(width: int, steps: int) -> float:
    """Return the peak learning rate of Adam that suits a TopK of this width, fitted to `benchmarks/rates.py` (LOG.md).

    Short runs want a higher rate than the 2e-4 / sqrt(width / 2^14) of Gao et al. 2024 (section 2.4), which was made for
    runs of some 10^5 steps; the fit ends there and stays there for longer ones."""
    longer = (min(steps, LONG) / LONG) ** STEPS_POWER
    return min(HIGHEST, GAO * (2**14 / width) ** 0.5 * longer)
