from .errors import WorkbenchError
from .generation import Sampling, generate, prompt_ids
from .harvest import HarvestConfig
from .language_model import LanguageModel
from .shuffle import ShuffledReader
from .store import Store
from .streaming.folder import StreamConfig
from .text import TextConfig
from .tokens import PackingConfig

__all__ = [
    "HarvestConfig",
    "LanguageModel",
    "PackingConfig",
    "Sampling",
    "ShuffledReader",
    "Store",
    "StreamConfig",
    "TextConfig",
    "WorkbenchError",
    "generate",
    "prompt_ids",
]
