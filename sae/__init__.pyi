from .architectures import (
    SAE,
    AbsTopKConfig,
    AdaptiveKConfig,
    BatchTopKConfig,
    GatedConfig,
    GBAConfig,
    JumpReLUConfig,
    KronConfig,
    MatryoshkaConfig,
    MFRConfig,
    ReLUConfig,
    TopAFAConfig,
    TopKConfig,
    build,
)
from .cli.evaluate import evaluate
from .cli.train import train
from .code import SparseCode
from .config import RunConfig
from .errors import SAEError
from .features.reader import read
from .features.reading import Reading
from .features.store import FeatureStore
from .imported import import_sae
from .runs import Run, load_sae
from .steering.interventions import Calibration, Intervention
from .steering.steering import Steering
from .training.trainer import TrainConfig

__all__ = [
    "SAE",
    "AbsTopKConfig",
    "AdaptiveKConfig",
    "BatchTopKConfig",
    "Calibration",
    "FeatureStore",
    "GBAConfig",
    "GatedConfig",
    "Intervention",
    "JumpReLUConfig",
    "KronConfig",
    "MFRConfig",
    "MatryoshkaConfig",
    "ReLUConfig",
    "Reading",
    "Run",
    "RunConfig",
    "SAEError",
    "SparseCode",
    "Steering",
    "TopAFAConfig",
    "TopKConfig",
    "TrainConfig",
    "build",
    "evaluate",
    "import_sae",
    "load_sae",
    "read",
    "train",
]
