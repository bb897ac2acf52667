from .errors import ActivationsError
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
    "ShuffledReader",
    "Store",
    "TextConfig",
]
