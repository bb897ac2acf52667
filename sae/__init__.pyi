import activations.errors

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
from .code import SparseCode
from .config import RunConfig
from .features.store import FeatureStore
from .reading.reader import read
from .reading.reading import Reading
from .runs.run import Run
from .runs.saved_sae import load_sae
from .steering.interventions import Calibration, Intervention
from .steering.steering import Steering
from .training.trainer import TrainConfig
from .workflows.evaluate import evaluate
from .workflows.import_sae import import_sae
from .workflows.train import train

WorkbenchError = activations.errors.WorkbenchError
__version__: str

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
    "SparseCode",
    "Steering",
    "TopAFAConfig",
    "TopKConfig",
    "TrainConfig",
    "WorkbenchError",
    "build",
    "evaluate",
    "import_sae",
    "load_sae",
    "read",
    "train",
]
