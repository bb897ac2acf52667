"""Where metrics go: log.jsonl always, TensorBoard and Weights & Biases when asked for."""

import json
from pathlib import Path
from typing import Any, Literal, Protocol

from activations.disk import files
from activations.disk.schema import fits
from activations.errors import ConfigError, RunError

LoggerName = Literal["tensorboard", "wandb"]


class Logger(Protocol):
    """Takes rows of numbers, each with its `step`."""

    def log(self, row: dict[str, float]) -> None:
        """Take one row."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class JsonLines:
    """One JSON object a line in log.jsonl; a resumed run first drops the rows after its checkpoint."""

    def __init__(self, path: Path, resume_at: int = 0):
        kept = [json.dumps(row) + "\n" for row in read(path) if row["step"] <= resume_at]
        files.write_atomically(path, lambda part: part.write_text("".join(kept), encoding="utf-8"))
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
        """One scalar a column."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WandB:
    """A Weights & Biases run named after the folder; needs the extra and, unless offline, an account."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise ConfigError("--loggers wandb needs: pip install 'sae-workbench[wandb]'") from error
        self._run = wandb.init(
            project="sae-workbench",
            name=folder.name,
            dir=folder,
            config=about["config"],
            id=about["id"],  # a resumed run goes on in the same place
            resume="allow",
        )

    def log(self, row: dict[str, float]) -> None:
        """One history row."""
        self._run.log(row, step=int(row["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Loggers:
    """All of a run's loggers as one; `about` is what run.json says."""

    def __init__(
        self, folder: Path, names: tuple[LoggerName, ...], about: dict[str, Any], resume_at: int = 0
    ):
        self._all: list[Logger] = [JsonLines(folder / "log.jsonl", resume_at)]
        makers = {"tensorboard": lambda: TensorBoard(folder), "wandb": lambda: WandB(folder, about)}
        self._all += [makers[name]() for name in names]

    def log(self, row: dict[str, float]) -> None:
        """Hand the row to each."""
        for logger in self._all:
            logger.log(row)

    def close(self) -> None:
        """Close each."""
        for logger in self._all:
            logger.close()


def read(path: Path) -> list[dict[str, float]]:
    """Rows of a log.jsonl; a last line cut short by a crash is left out. Empty when there is no file.

    Raises RunError when another line is damaged."""
    if not path.exists():
        return []
    try:
        lines = files.plain(path).read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    return [_row(line, f"line {number} of {path}") for number, line in enumerate(lines, 1)]


def _row(line: bytes, place: str) -> dict[str, float]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{place} is damaged ({error}): take it out") from error
    if not (isinstance(row, dict) and "step" in row and _are_numbers(row)):
        raise RunError(f"{place} is damaged: needed is an object of numbers with its step; take it out")
    return row


def _are_numbers(row: dict[str, Any]) -> bool:
    """What a training logs may be infinite, but for its step."""
    return fits(row["step"], float) and all(isinstance(v, float) or fits(v, int) for v in row.values())
