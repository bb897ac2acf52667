"""What is measured with labelled texts, as it is kept in a run's folder: probes.json and monitors/NAME.json (FORMAT.md)."""

from dataclasses import dataclass, field
from typing import Literal

from sae.runs.records import Estimate, Scalar

FORMAT = 2
"""Of probes.json. 1 counted the first token of texts without a BOS in the mean over a text's tokens."""
MONITOR_FORMAT = 3
"""1 counted the first token of texts without a BOS in the mean and the largest value over a text's tokens, and up to 2 the largest value
was never below 0, so that the negative values of signed latents did not count."""
PROBES = "probes.json"
MONITORS = "monitors"
Method = Literal["sae", "random sae", "neurons", "logistic", "difference", "pca", "tokens"]
METHODS: dict[Method, str] = {
    "sae": "k latents of the SAE",
    "random sae": "k latents of the same SAE, its directions turned at random",
    "neurons": "k coordinates of the activation",
    "logistic": "logistic regression on the activation",
    "difference": "difference of the classes' means",
    "pca": "principal components of the activation",
    "tokens": "bag of tokens, without the language model",
}
"""What each method reads."""
SPARSE: tuple[Method, ...] = ("sae", "random sae", "neurons")
"""Methods that are given k columns."""


@dataclass(frozen=True)
class Score:
    """A method's AUC on the test examples of one setting."""

    method: Method
    k: int | None
    """Number of columns it may read; None for methods that read all."""
    setting: str
    level: float
    """What the setting varies: training examples, share of the second class, share of flipped labels; 0 in the normal one."""
    n_train: int
    n_test: int
    auc: Estimate
    """Mean over reseeds, with its 95 % interval."""
    aucs: list[float]
    """The AUC of each reseed."""
    columns: list[int] = field(default_factory=list)
    """Columns that the first reseed chose, the most different first; of `sae` they are latents."""


@dataclass(frozen=True)
class ProbeLoss:
    """The probe loss of Gao et al. 2024, section 4.2: the best single latent's cross-entropy, in nats."""

    latent: int
    fitted: float
    """On the examples on which the latent was chosen and fitted, as the paper has it."""
    held_out: float
    """On the other examples."""


@dataclass(frozen=True)
class ProbedTask:
    """The results of one task."""

    name: str
    classes: list[str]
    examples: int
    texts_sha256: str
    """SHA-256 of its texts and labels, in order."""
    scores: list[Score]
    probe_loss: ProbeLoss

    def best(self, method: Method, k: int | None = None, setting: str = "normal") -> Score | None:
        """Return a method's score in a setting at its first level, or None when it was not measured."""
        return next((s for s in self.scores if (s.method, s.k, s.setting) == (method, k, setting)), None)


@dataclass(frozen=True)
class ProbesRecord:
    """The content of probes.json."""

    format: int
    sae_sha256: str
    hook: str
    config: dict[str, Scalar | list[Scalar]]
    tasks: list[ProbedTask]


@dataclass(frozen=True)
class Monitor:
    """One latent that watches texts: the content of monitors/NAME.json.

    A text's score is `sign` times the latent's value, pooled over its tokens. The monitor fires above `threshold`."""

    format: int
    name: str
    sae_sha256: str
    hook: str
    latent: int
    sign: int
    """1 where the latent is higher on what the monitor looks for, -1 where it is lower."""
    pooling: Literal["max", "mean", "last"]
    """How the latent's values on the tokens of a text become one number."""
    context: int
    """Tokens that are read of a text: the last ones."""
    threshold: float
    chosen_rate: float
    """Share of the other texts that the threshold was allowed to fire on."""
    auc: float
    """On the held-out examples, as everything below."""
    true_positive_rate: float
    false_positive_rate: float
    examples: list[int]
    """Held-out examples of what it looks for, and others."""
    threshold_examples: int
    """Examples of the others on which the threshold was chosen; none of them is held out."""
