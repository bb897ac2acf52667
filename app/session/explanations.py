"""The rules that explain features (`sae explain`) and what a language model said of them: in the tables, as names of
features without a label, on a feature's page."""

import pyarrow as pa

from activations.errors import quoted
from app.session import beside
from sae.features import judgements
from sae.features.explanations import INDEX, Explanations, explanations_of
from sae.features.feature import FeatureStore
from sae.features.judgements import judgements_of
from sae.report import explanations as report
from sae.report import features as features_report
from sae.report import judgements as judgements_report


def of(store: FeatureStore) -> Explanations | None:
    """Return what explains these features; None where they have not been explained. Damage is reported in the page."""
    return beside.kept(store, INDEX, explanations_of)


def names(store: FeatureStore) -> dict[int, str]:
    """Return the rules that are good enough to stand for a label, by feature."""
    found = of(store)
    return {} if found is None else found.names


def kinds(store: FeatureStore) -> dict[str, list[int]]:
    """Return the features that have a rule of each kind, the commonest kind first; empty where there are no rules."""
    found = of(store)
    return {} if found is None else found.by_kind


def with_explanations(table: pa.Table, store: FeatureStore) -> pa.Table:
    """Add the columns of rules to the table of all features, where there are rules."""
    found = of(store)
    return table if found is None else features_report.with_explanations(table, found.texts, found.f1)


def head(store: FeatureStore, latent: int) -> str:
    """Return a feature's rules and what a language model said of it, with their scores, as HTML.

    Where the features have no rules, or those of an earlier format, it names the command that finds them."""
    found, judged = of(store), beside.kept(store, judgements.INDEX, judgements_of)
    if found is None:
        rules = report.missing(f"sae explain {quoted(store.path.parent)}")
    else:
        rules = report.head(found.of(latent), report.beside(found.record))
    return rules + ("" if judged is None else judgements_report.head(judged.of(latent), judged.record))
