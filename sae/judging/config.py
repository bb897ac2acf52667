"""Settings of `sae explain --judge`: which model judges, where it is, and what it is asked."""

import os
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit

from activations.errors import ConfigError, check_seed
from sae.runs.records import Scalar

LEAST_FIRING = 4  # texts on which a latent fires that it must have to be scored
MODEL_VARIABLE = "SAE_JUDGE_MODEL"
OPENAI = "api.openai.com"
ELSEWHERE = ("judge", "judge_key_env", "judge_timeout", "judge_at_once", "judge_only")
"""Settings that change no question: they are not written into the result."""


@dataclass(frozen=True)
class JudgeConfig:
    """Settings of the language model that explains latents and reads explanations. Nothing is sent anywhere without `judge`."""

    judge: str | None = None
    """Address of a language model that also explains latents, such as http://localhost:11434/v1, with any OpenAI-compatible server
    behind it. Texts of the store are sent there."""
    judge_model: str | None = None
    """Name of the model at that address; when left out, that in the environment variable SAE_JUDGE_MODEL."""
    judge_key_env: str | None = None
    """Environment variable that holds the key for the address, if it needs one; when left out, OPENAI_API_KEY for api.openai.com
    and none for any other address. The key is sent to the address and written nowhere."""
    judge_latents: int = 200
    """Latents that the model explains, drawn at random by --judge-seed."""
    judge_only: tuple[int, ...] = ()
    """Explain these latents and no others."""
    judge_texts: int = 20
    """Texts that tell how well an explanation says where a latent fires; it fires on half of them."""
    judge_trials: int = 4
    """Intruder trials of a latent: which of five texts does not belong. A silent text is the intruder once, so that there are at most
    half as many trials as texts."""
    judge_tokens: int = 32
    """Tokens of a text, two thirds of them before the token that it is about."""
    judge_windows: int = 256
    """Windows of the store, drawn at random, that texts without the latent are taken from."""
    judge_max_tokens: int = 400
    """Tokens of an answer at most; 0 asks for no limit, as models need that refuse `max_tokens`."""
    judge_temperature: float | None = 0.0
    """Temperature of the answers; None for models that refuse one."""
    judge_at_once: int = 4
    """Questions sent at once."""
    judge_timeout: float = 120.0
    """Seconds to wait for an answer before the question is sent again."""
    judge_seed: int = 0
    """Seed of the latents drawn and of the texts."""

    def __post_init__(self) -> None:
        for name in ("latents", "trials", "windows", "at_once"):
            if getattr(self, f"judge_{name}") < 1:
                raise ConfigError(f"judge_{name} = {getattr(self, f'judge_{name}')} must be at least 1")
        if self.judge_texts < 2 * LEAST_FIRING or self.judge_texts % 2:
            raise ConfigError(
                f"judge_texts = {self.judge_texts} must be even and at least {2 * LEAST_FIRING}: an intruder hides among "
                f"{LEAST_FIRING} texts on which the latent fires"
            )
        if self.judge_tokens < 4:
            raise ConfigError(f"judge_tokens = {self.judge_tokens} must be at least 4")
        if self.judge_max_tokens < 0:
            raise ConfigError(
                f"judge_max_tokens = {self.judge_max_tokens} must be at least 1, or 0 for no limit"
            )
        if not 0 < self.judge_timeout <= 3600:
            raise ConfigError(
                f"judge_timeout = {self.judge_timeout} must be above 0 and at most 3600 seconds"
            )
        check_seed(self.judge_seed, "judge_seed")

    @property
    def address(self) -> str:
        """The address that questions are posted to. Raises ConfigError for one that is not an http address, or holds a password."""
        try:
            found = urlsplit(self.judge or "")
            _ = found.port  # raises for one that is no number
        except ValueError:
            found = urlsplit("")
        if found.scheme not in ("http", "https") or not found.hostname or found.fragment:
            raise ConfigError(
                f"--judge {self.judge} is not an address: it must begin with http:// or https://, as in http://localhost:11434/v1"
            )
        if found.username or found.password or found.query:
            raise ConfigError(
                "--judge must not hold a key or a password: put the key into an environment variable and name it with --judge-key-env"
            )
        return f"{(self.judge or '').rstrip('/')}/chat/completions"

    @property
    def model(self) -> str:
        """The model's name. Raises ConfigError where neither the option nor the environment gives one."""
        name = self.judge_model or os.environ.get(MODEL_VARIABLE, "")
        if not name.strip():
            raise ConfigError(
                f"the judge's model is missing: give --judge-model NAME, or set {MODEL_VARIABLE}"
            )
        return name

    @property
    def key(self) -> str | None:
        """The key in the environment; None where there is none. Raises ConfigError for one that cannot be sent.

        That of OPENAI_API_KEY is sent to OpenAI's own address alone, unless the option names the variable."""
        variable = self.key_variable
        key = os.environ.get(variable, "").strip() if variable else ""
        if not key.isascii() or not key.isprintable():
            raise ConfigError(f"the key in {variable} holds characters that no key has")
        return key or None

    @property
    def key_variable(self) -> str | None:
        """The environment variable that holds the key; None where the address gets none."""
        if self.judge_key_env is None and urlsplit(self.judge or "").hostname == OPENAI:
            return "OPENAI_API_KEY"
        return self.judge_key_env

    @property
    def sent(self) -> dict[str, Scalar]:
        """The settings that are sent with every question."""
        settings: dict[str, Scalar] = {"model": self.model}
        if self.judge_temperature is not None:
            settings["temperature"] = self.judge_temperature
        if self.judge_max_tokens:
            settings["max_tokens"] = self.judge_max_tokens
        return settings

    def recorded(self) -> dict[str, Scalar]:
        """Return the settings that decide what is asked, as they are written into the result."""
        return {name: value for name, value in asdict(self).items() if name not in ELSEWHERE}
