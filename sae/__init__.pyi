import activations.errors

from .architectures import (
    GBA,
    MFR,
    SAE,
    AbsTopK,
    AbsTopKConfig,
    AdaptiveK,
    AdaptiveKConfig,
    BatchTopK,
    BatchTopKConfig,
    Gated,
    GatedConfig,
    GBAConfig,
    JumpReLU,
    JumpReLUConfig,
    KronConfig,
    KronSAE,
    Matryoshka,
    MatryoshkaConfig,
    MFRConfig,
    ReLU,
    ReLUConfig,
    TopAFA,
    TopAFAConfig,
    TopK,
    TopKConfig,
    build,
)
from .code import SparseCode
from .config import RunConfig, TrainConfig
from .features.feature import FeatureStore
from .judging.config import JudgeConfig
from .reading.reader import read
from .reading.reading import Reading
from .runs.run import Run
from .runs.saved_sae import load_sae
from .steering.interventions import Calibration, Intervention
from .steering.steering import Steering
from .workflows.absorption import AbsorptionConfig, absorption
from .workflows.evaluate import evaluate
from .workflows.explain import ExplainConfig, explain
from .workflows.families import FamiliesConfig, families
from .workflows.find import FindConfig, find, monitor_texts, save_monitor
from .workflows.finetune import FinetuneConfig, finetune
from .workflows.import_sae import import_sae
from .workflows.judge import judge
from .workflows.lens import LensConfig, lens
from .workflows.pool import PoolConfig, pool
from .workflows.probe import ProbeConfig, probe
from .workflows.rings import RingSettings
from .workflows.together import train_together
from .workflows.train import train

WorkbenchError = activations.errors.WorkbenchError
__version__: str

__all__ = [
    "GBA",
    "MFR",
    "SAE",
    "AbsTopK",
    "AbsTopKConfig",
    "AbsorptionConfig",
    "AdaptiveK",
    "AdaptiveKConfig",
    "BatchTopK",
    "BatchTopKConfig",
    "Calibration",
    "ExplainConfig",
    "FamiliesConfig",
    "FeatureStore",
    "FindConfig",
    "FinetuneConfig",
    "GBAConfig",
    "Gated",
    "GatedConfig",
    "Intervention",
    "JudgeConfig",
    "JumpReLU",
    "JumpReLUConfig",
    "KronConfig",
    "KronSAE",
    "LensConfig",
    "MFRConfig",
    "Matryoshka",
    "MatryoshkaConfig",
    "PoolConfig",
    "ProbeConfig",
    "ReLU",
    "ReLUConfig",
    "Reading",
    "RingSettings",
    "Run",
    "RunConfig",
    "SparseCode",
    "Steering",
    "TopAFA",
    "TopAFAConfig",
    "TopK",
    "TopKConfig",
    "TrainConfig",
    "WorkbenchError",
    "absorption",
    "build",
    "evaluate",
    "explain",
    "families",
    "find",
    "finetune",
    "import_sae",
    "judge",
    "lens",
    "load_sae",
    "monitor_texts",
    "pool",
    "probe",
    "read",
    "save_monitor",
    "train",
    "train_together",
]
