"""Rules: conditions on a token and its place that say where a latent should fire, in words and as data."""

import json
from dataclasses import dataclass

KINDS = {
    "token": "token {}",
    "piece": "text {}, in any case",
    "word": "word {}",
    "previous": "after {}",
    "two before": "{} two tokens before",
    "bigram": "{}",
    "trigram": "{}",
    "skip-gram": "{}",
    "nearby": "{} within the last 8 tokens",
    "ending": "word ending in {}",
    "beginning": "word beginning with {}",
    "position": "position {} of the window",
    "property": "{}",
}
"""Kinds of conditions, and how each reads. A property is one of `sae.rules.properties`."""
PLURALS = {"token": "tokens {}", "word": "words {}", "position": "positions {} of the window"}
BARE = {"position", "property"}  # kinds whose keys are not text of tokens
AFFIXES = {"ending": "-{}", "beginning": "{}-"}
SKIPPED = "*"  # stands for any token


@dataclass(frozen=True)
class Condition:
    """One condition, which a row meets when it has any of the keys."""

    kind: str
    keys: tuple[tuple[str, ...], ...]
    """Each key is the texts of its tokens in order, or one text."""

    def __str__(self) -> str:
        form = PLURALS.get(self.kind, KINDS[self.kind]) if len(self.keys) > 1 else KINDS[self.kind]
        return form.format(" or ".join(self._spelled(key) for key in self.keys))

    def _spelled(self, key: tuple[str, ...]) -> str:
        if self.kind in BARE:
            return key[0]
        if self.kind in AFFIXES:
            return AFFIXES[self.kind].format(key[0])
        texts = [key[0], SKIPPED, key[1]] if self.kind == "skip-gram" else key
        return " ".join(text if text is SKIPPED else f"“{text}”" for text in texts)


@dataclass(frozen=True)
class Rule:
    """Conditions that a row must all meet; without any, every row does."""

    conditions: tuple[Condition, ...] = ()

    def __str__(self) -> str:
        return ", ".join(map(str, self.conditions)) if self.conditions else "every token"

    @property
    def kind(self) -> str:
        """The kind of its conditions, joined by +; `always` where there are none."""
        return " + ".join(condition.kind for condition in self.conditions) or "always"

    def to_json(self) -> str:
        """Return the rule as JSON: a list of objects with `kind` and `keys`."""
        return json.dumps(
            [{"kind": part.kind, "keys": part.keys} for part in self.conditions], ensure_ascii=False
        )
