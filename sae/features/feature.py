"""One feature of a features folder with everything that is known about it, as an object, in a notebook and as an HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from activations.disk import files
from activations.errors import RunError, quoted
from sae.features.effects import Effect, load_effect
from sae.features.explanations import Explanation, explanations_of
from sae.features.families import Family, families_of
from sae.features.folder import Band, Example, FeaturesFolder, Histogram, Partner
from sae.features.judgements import Judgement, judgements_of
from sae.features.latent_labels import Label
from sae.features.lenses import lenses_of
from sae.report import explanations, families, histogram, judgements, render, token_strips
from sae.report import feature as feature_report
from sae.report import lens as lens_report
from sae.report.render import escaped
from sae.runs.records import FeatureRow
from sae.runs.run import Run

AROUND, EXAMPLES = 40, 10  # tokens of a window, and examples of a group, in a file
SHORT_AROUND, SHORT_EXAMPLES = 24, 6  # the same in a notebook


@dataclass(frozen=True)
class Feature:
    """One latent of a `FeatureStore`, whose methods document each part. Every part is read when it is accessed."""

    store: FeaturesFolder
    latent: int

    def __repr__(self) -> str:
        return f"Feature({str(self.store.path)!r}, {self.latent})"

    @cached_property
    def row(self) -> FeatureRow:
        """Its row of the table, by column."""
        return self.store.row(self.latent)

    @property
    def strongest(self) -> list[Example]:
        """Windows with its largest positive values, best first."""
        return self.store.strongest(self.latent)

    @property
    def most_negative(self) -> list[Example]:
        """Windows with its most negative values, best first."""
        return self.store.strongest(self.latent, -1)

    @property
    def bands(self) -> list[Band]:
        """Windows drawn uniformly from all in which it fires, in five bands by activation value."""
        return self.store.bands(self.latent)

    @property
    def histogram(self) -> Histogram:
        """Histogram of its nonzero values."""
        return self.store.histogram(self.latent)

    @property
    def partners(self) -> list[Partner]:
        """Latents that fire on the same tokens."""
        return self.store.partners(self.latent)

    @property
    def effect(self) -> Effect | None:
        """Its measured effect on the model's predictions; None where it has not been measured."""
        return load_effect(self.store, self.latent)

    @property
    def label(self) -> Label:
        """The label and note that people gave it, read from the disk anew; both empty where there are none."""
        return self.store.labels.get(self.latent)

    @property
    def explanations(self) -> list[Explanation]:
        """The rules that say where it fires, of either sign, with their scores; none where `sae explain` has made none."""
        explained = explanations_of(self.store)
        return [] if explained is None else explained.of(self.latent)

    @property
    def family(self) -> Family | None:
        """Its parent, siblings and children among the latents; None where `sae families` has not looked for them."""
        found = families_of(self.store)
        return None if found is None else found.of(self.latent)

    @property
    def judgement(self) -> Judgement | None:
        """What a language model said of it, with scores beside the rule's; None where `sae explain --judge` has not asked."""
        judged = judgements_of(self.store)
        return None if judged is None else judged.of(self.latent)

    def _repr_html_(self) -> str:
        return notebook(self)


def export_html(features: FeaturesFolder, latents: Sequence[int], path: Path, title: str) -> Path:
    """Write features as one self-contained HTML file, with their measured effects and labels.

    Raises RunError when there is no such feature."""
    parts = [body(Feature(features, latent), AROUND, EXAMPLES) for latent in latents]
    text = render.document(
        f"{title}: {'feature' if len(parts) == 1 else 'features'} {_listed(latents)}", parts
    )
    files.write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def notebook(feature: Feature) -> str:
    """Return a feature as the card that `Feature._repr_html_` shows."""
    return render.framed(f'<div class="sae-document">{body(feature, SHORT_AROUND, SHORT_EXAMPLES)}</div>')


def body(feature: Feature, around: int, most: int) -> str:
    """Return the HTML of one feature: heading, label, numbers, examples, and everything else known about it beside them."""
    row, label = feature.row, feature.label
    tokens = render.chips(row["peak_tokens"])
    left = _examples(feature, around, most) if row["fired"] else _never(feature)
    found = explanations_of(feature.store)
    explained = (
        ""
        if found is None
        else explanations.head(found.of(feature.latent), explanations.beside(found.record))
    )
    judged = judgements_of(feature.store)
    said = "" if judged is None else judgements.head(judged.of(feature.latent), judged.record)
    typical = feature_report.typical(feature.store.sampled(feature.latent), row["peak_tokens"])
    numbers = [*feature_report.numbers(row), *feature_report.weights(row)]
    return (
        f'<article class="sae feature"><header class="sae"><h2>Feature {feature.latent} <span>{tokens}</span></h2>'
        f"{feature_report.labelled(*label)}{explained}{said}{typical}</header>{render.figures(numbers)}"
        f'<div class="columns"><div>{left}</div><div>{"".join(_beside(feature))}</div></div></article>'
    )


def _examples(feature: Feature, around: int, most: int) -> str:
    groups = feature_report.groups(feature.strongest, feature.most_negative, feature.bands)
    scale = feature_report.scale(feature.row)
    return "".join(
        render.section(group.title, group.remark, 3)
        + token_strips.examples(group.windows, scale, around, most)
        for group in groups
    )


def _never(feature: Feature) -> str:
    title, why = feature_report.dead(feature.store.record.tokens)
    return render.section(title, "", 3) + f"<p>{escaped(why)}</p>"


def _beside(feature: Feature) -> list[str]:
    row, explained = feature.row, explanations_of(feature.store)
    # gives other features' labels or rules, and peak tokens
    describe = describer(feature.store, feature.store.labels.all(), explained.names if explained else {})
    parts = []
    if row["fired"]:
        values = feature.histogram
        drawn = histogram.svg(values.edges.tolist(), values.counts.tolist())
        parts.append(render.section("Values", "tokens by value, both axes logarithmic", 3) + drawn)
    lenses = lenses_of(feature.store)
    tokens = lenses.of(feature.latent) if lenses else None
    for lens in lens_report.sections(row, tokens, lenses.record if lenses else None):
        agreement = f'<p class="dim">{escaped(lens.agreement)}</p>' if lenses else ""
        parts.append(render.section(lens.title, lens.remark, 3) + render.pair(*lens.lists) + agreement)
    for title, side in feature_report.effect_sides(feature.effect):
        parts.append(
            render.section("Measured effect", "ablated at its examples' peaks", 3)
            + feature_report.effect(title, side)
        )
    if (kin := feature.family) and (shown := families.kin(kin, describe, None)):
        parts.append(render.section("Family", "", 3) + shown)
    if row["neighbours"]:
        parts.append(
            render.section("Nearest features", "by decoder cosine", 3)
            + feature_report.neighbours(row, describe, None)
        )
    if partners := feature.partners:
        parts.append(
            render.section("Fires together with", "", 3) + feature_report.partners(partners, describe, None)
        )
    return parts


def describer(
    features: FeaturesFolder, labels: Mapping[int, Label], rules: Mapping[int, str]
) -> feature_report.Describe:
    """Return a function from a feature to its label and the tokens it fires most on.

    One without a label has its rule in place of it, said to be one, if `rules` has any (`Explanations.names`); else it is empty."""
    return lambda latent: (
        labels.get(latent, Label()).label
        or (explanations.automatic(rules[latent]) if latent in rules else ""),
        features.table["peak_tokens"][latent].as_py(),
    )


def _listed(latents: Sequence[int]) -> str:
    return ", ".join(map(str, latents[:5])) + (f" and {len(latents) - 5} more" if len(latents) > 5 else "")


class FeatureStore(FeaturesFolder):
    """A features folder, opened (see `FeaturesFolder`); `feature` gives one latent with everything that is known about it."""

    def feature(self, latent: int) -> Feature:
        """Return one latent's row, examples, histogram, partners, effect and label. Raises RunError for a number out of range."""
        self.check_latent(latent)
        return Feature(self, latent)


def features_of(run: Run) -> FeatureStore:
    """Return a run's features. Raises RunError when there are none, or when they are of other weights than the run has now, or of
    tokens at positions that it was not trained on, as 0.1.0 collected them."""
    features = FeatureStore(run.path / "features")
    if features.record.positions != run.config.positions:
        raise RunError(
            f"{features.path} is of tokens at {features.record.positions} positions, and {run.path} was trained on those at "
            f"{run.config.positions}",
            fix=f"sae features {quoted(run.path)}",
        )
    if features.record.sae_sha256 != run.digest:
        raise RunError(
            f"{features.path} is of other weights than {run.path} has now",
            fix=f"sae features {quoted(run.path)}",
        )
    return features
