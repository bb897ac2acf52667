"""Write training metrics to log.jsonl, and on request to TensorBoard and Weights & Biases."""

import json
from pathlib import Path
from typing import Protocol

from activations.disk import files
from activations.errors import ConfigError
from sae.config import LoggerName
from sae.runs.records import RunRecord
from sae.runs.saved_sae import read_log


class Logger(Protocol):
    """Takes rows of numbers, each with its `step`."""

    def log(self, row: dict[str, float]) -> None:
        """Take one row."""
        ...

    def close(self) -> None:
        """Close the destination; no more rows come."""
        ...


class JsonLines:
    """One JSON object a line in log.jsonl; a resumed run first drops the rows after its checkpoint."""

    def __init__(self, path: Path, resume_at: int = 0):
        lines = [json.dumps(row) + "\n" for row in read_log(path) if row["step"] <= resume_at]
        files.write_atomically(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))
        self._file = path.open("a", encoding="utf-8")

    def log(self, row: dict[str, float]) -> None:
        """Write the row out at once, so that a killed run keeps it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Event files in the run folder's `tensorboard/`; needs the extra of that name."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "--loggers tensorboard needs: pip install 'sae-workbench[tensorboard]'"
            ) from error
        self._writer = SummaryWriter(folder / "tensorboard")

    def log(self, row: dict[str, float]) -> None:
        """Write one scalar for each column of the row."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandB:
    """A Weights & Biases run named after the folder; needs the extra and, unless offline, an account."""

    def __init__(self, folder: Path, record: RunRecord):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("--loggers wandb needs: pip install 'sae-workbench[wandb]'") from error
        self._run = wandb.init(
            project="sae-workbench",
            name=folder.name,
            dir=folder,
            config=record.config,
            id=record.id,  # a resumed run continues the same history
            resume="allow",
        )

    def log(self, row: dict[str, float]) -> None:
        """Write the row to the run's history."""
        self._run.log(row, step=int(row["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Loggers:
    """All of a run's loggers as one; `record` is the run's run.json."""

    def __init__(self, folder: Path, names: tuple[LoggerName, ...], record: RunRecord, resume_at: int = 0):
        self._all: list[Logger] = [JsonLines(folder / "log.jsonl", resume_at)]
        makers = {"tensorboard": lambda: TensorBoard(folder), "wandb": lambda: WandB(folder, record)}
        self._all += [makers[name]() for name in names]

    def log(self, row: dict[str, float]) -> None:
        """Hand the row to every logger."""
        for logger in self._all:
            logger.log(row)

    def close(self) -> None:
        """Close every logger."""
        for logger in self._all:
            logger.close()
