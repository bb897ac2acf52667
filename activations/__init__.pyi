from .errors import ActivationsError
from .generation import Sampling, generate, prompt_ids
from .harvest import HarvestConfig
from .models import LanguageModel
from .shuffle import ShuffledReader
from .store import Store
from .text import TextConfig
from .tokens import PackingConfig

__all__ = [
    "ActivationsError",
    "HarvestConfig",
    "LanguageModel",
    "PackingConfig",
    "Sampling",
    "ShuffledReader",
    "Store",
    "TextConfig",
    "generate",
    "prompt_ids",
]
