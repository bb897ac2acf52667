"""The Steering page's settings as a link carries them. Links are read strictly and written without what is default."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from activations.errors import ConfigError
from activations.generation import Sampling
from sae.steering.conditions import MONITOR, condition_of
from sae.steering.interventions import Intervention, Mode, Unit
from sae.steering.steering import Positions, positions_of
from sae.workflows.find import NAME as MONITOR_NAME

MOST_FEATURES, MOST_TOKENS, MOST_TEXTS, MOST_STRENGTH, LONGEST_PROMPT = 8, 200, 4, 100.0, 4000
DECIMAL = re.compile(r"-?\d{1,4}(\.\d{1,6})?", re.ASCII)
WHOLE = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """The page's settings."""

    interventions: tuple[Intervention, ...]
    prompt: str = "I think that"
    chat: bool = False
    tokens: int = 40
    temperature: float = 0.7
    seed: int = 0
    texts: int = 1
    positions: Positions = "all"
    first_token: bool = False
    keep_error: bool = True
    when: str = ""
    """Where activations are changed at all, as `sae.workflows.find.condition` takes it; empty for everywhere."""

    @property
    def is_full(self) -> bool:
        """Whether as many features are steered as can be at once."""
        return len(self.interventions) >= MOST_FEATURES

    @property
    def sampling(self) -> Sampling:
        """The sampling of tokens: by temperature, from the likeliest tokens that make up 95 % of the probability."""
        return Sampling(self.tokens, self.temperature, top_p=0.95)

    @property
    def seeds(self) -> range:
        """The seed of each text."""
        return range(self.seed, self.seed + self.texts)

    @property
    def latents(self) -> list[int]:
        """The features that are steered, and the one that says where, unless a monitor does."""
        when = None if self.when.startswith(MONITOR) else condition_of(self.when)
        return [intervention.latent for intervention in self.interventions] + ([when.latent] if when else [])

    @property
    def strongest(self) -> Intervention:
        """The intervention of the largest strength, which the doses of a dose-response are those of."""
        return max(self.interventions, key=lambda intervention: abs(intervention.strength))

    @property
    def has_limit(self) -> bool:
        """Whether one of the strengths is a limit (clamp), which has no sign."""
        return any(intervention.mode == "clamp" for intervention in self.interventions)

    @property
    def unit(self) -> Unit:
        """The unit of all strengths."""
        return self.interventions[0].unit

    def with_intervention(self, place: int, **changes: object) -> "Settings":
        """Return settings with one intervention changed."""
        changed = list(self.interventions)
        changed[place] = replace(changed[place], **changes)  # type: ignore[arg-type]
        return replace(self, interventions=tuple(changed))


def read(query: Mapping[str, str], n_latents: int, default: int) -> Settings:
    """Return the settings that a link asks for, with defaults for what it leaves out; the default feature is `default`.

    Raises ConfigError for the first part of the link that is not allowed."""
    feature = query.get("feature", str(default))
    unit = _one_of("unit", query.get("unit", "max"), get_args(Unit))
    parts = query.get("steer", f"{feature}:add:1").split(",")
    if len(parts) > MOST_FEATURES:
        raise ConfigError(f"the link steers {len(parts)} features, must be at most {MOST_FEATURES}")
    interventions = tuple(_intervention(part, unit, n_latents) for part in parts)
    latents = [intervention.latent for intervention in interventions]
    if len(set(latents)) < len(latents):
        raise ConfigError(f"the link names a feature twice: steer = {query.get('steer', '')[:60]!r}")
    usual = Settings(interventions)
    prompt = query.get("prompt", usual.prompt)
    if len(prompt) > LONGEST_PROMPT:
        raise ConfigError(
            f"the link's prompt has {len(prompt):,} characters, must have at most {LONGEST_PROMPT:,}"
        )
    return Settings(
        interventions,
        prompt,
        _switch(query, "chat", usual.chat),
        int(_number(query, "tokens", usual.tokens, 1, MOST_TOKENS, WHOLE)),
        _number(query, "temperature", usual.temperature, 0, 2),
        int(_number(query, "seed", usual.seed, 0, 10**9 - 1, WHOLE)),
        int(_number(query, "texts", usual.texts, 1, MOST_TEXTS, WHOLE)),
        positions_of(query.get("positions", "all")),
        _switch(query, "first", usual.first_token),
        _switch(query, "error", usual.keep_error),
        checked_condition(query.get("when", usual.when), n_latents),
    )


def write(run: str, settings: Settings) -> dict[str, str]:
    """Return what a link to these settings carries: the run, the features, and what differs from the defaults."""
    usual = Settings(settings.interventions)
    positions = settings.positions
    values = {
        "prompt": settings.prompt,
        "chat": _bit(settings.chat),
        "tokens": str(settings.tokens),
        "temperature": _short(settings.temperature),
        "seed": str(settings.seed),
        "texts": str(settings.texts),
        "positions": positions if isinstance(positions, str) else ",".join(map(str, positions)),
        "first": _bit(settings.first_token),
        "error": _bit(settings.keep_error),
        "unit": settings.unit,
        "when": settings.when,
    }
    defaults = {"prompt": usual.prompt, "chat": "0", "tokens": str(usual.tokens), "temperature": _short(usual.temperature),
            "seed": "0", "texts": "1", "positions": "all", "first": "0", "error": "1", "unit": "max", "when": ""}  # fmt: skip
    steer = ",".join(f"{i.latent}:{i.mode}:{_short(i.strength)}" for i in settings.interventions)
    return {"run": run, "steer": steer} | {
        name: value for name, value in values.items() if value != defaults[name]
    }


def checked_condition(text: str, n_latents: int) -> str:
    """Return a condition as it was typed, without the space around it. Whether its monitor exists is not checked.

    Raises ConfigError for one that is no condition or names a feature that does not exist."""
    name = text.strip().removeprefix(MONITOR)
    if name != text.strip() and MONITOR_NAME.fullmatch(name):
        return text.strip()
    condition = condition_of(text)
    if condition and condition.latent >= n_latents:
        raise ConfigError(
            f"when: feature {condition.latent} does not exist: this run has 0 to {n_latents - 1}"
        )
    return text.strip()


def _intervention(text: str, unit: str, n_latents: int) -> Intervention:
    parts = text.split(":")
    if len(parts) != 3 or not WHOLE.fullmatch(parts[0]) or not DECIMAL.fullmatch(parts[2]):
        raise ConfigError(f"steer = {text[:60]!r} must be feature:mode:strength, such as 17:add:1.5")
    latent, strength = int(parts[0]), float(parts[2])
    if latent >= n_latents:
        raise ConfigError(f"feature {latent} does not exist: this run has 0 to {n_latents - 1}")
    if abs(strength) > MOST_STRENGTH:
        raise ConfigError(f"strength = {parts[2]}, must be from {-MOST_STRENGTH:g} to {MOST_STRENGTH:g}")
    return Intervention(latent, _one_of("mode", parts[1], get_args(Mode)), strength, unit)  # type: ignore[arg-type]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ConfigError(f"{name} = {value[:60]!r} must be one of {', '.join(allowed)}")
    return value


def _switch(query: Mapping[str, str], name: str, usual: bool) -> bool:
    return _one_of(name, query.get(name, _bit(usual)), ("0", "1")) == "1"


def _number(
    query: Mapping[str, str],
    name: str,
    usual: float,
    low: float,
    high: float,
    form: re.Pattern[str] = DECIMAL,
) -> float:
    text = query.get(name, f"{usual:g}")
    if not form.fullmatch(text) or not low <= float(text) <= high:
        raise ConfigError(f"{name} = {text[:60]!r} must be a number from {low:g} to {high:g}")
    return float(text)


def _bit(value: bool) -> str:
    return str(int(value))


def _short(value: float) -> str:
    """Return a decimal number without an exponent, to six places."""
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"
