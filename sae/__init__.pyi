from .architectures import SAE, BatchTopKConfig, TopKConfig, build
from .code import SparseCode
from .config import RunConfig
from .errors import SAEError
from .features.store import FeatureStore
from .runs import Run, load_sae
from .training.trainer import TrainConfig

__all__ = [
    "SAE",
    "BatchTopKConfig",
    "FeatureStore",
    "Run",
    "RunConfig",
    "SAEError",
    "SparseCode",
    "TopKConfig",
    "TrainConfig",
    "build",
    "load_sae",
]
