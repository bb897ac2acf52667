"""Every error that the workbench raises on purpose. The command line prints one and ends with exit code 2.

    WorkbenchError
    ├── TextError
    ├── LabelError
    ├── ModelError
    ├── HookError
    ├── StoreError
    ├── HarvestError
    ├── BusyError
    ├── GenerationError
    ├── RankError
    ├── ChatError
    ├── ConfigError
    ├── ShapeError
    ├── RunError
    ├── DivergedError
    ├── ForeignError
    ├── HubError
    └── JudgeError

Anything else that is raised is a fault of the workbench and shows its traceback."""

import shlex

LONGEST = 1000  # characters


class WorkbenchError(Exception):
    """Something the caller can put right.

    The message says in one line what is wrong, what was found and what was needed. `fix` is the shell command that puts it
    right, where there is one, each path in it `quoted`: the command line prints it on a line of its own, the app offers it to
    copy."""

    def __init__(self, message: str, *, fix: str | None = None):
        super().__init__(message)
        self.fix = fix

    @property
    def message(self) -> str:
        """The message in one line, shortened in the middle where it quotes much of a file or a library."""
        line = " ".join(str(self.args[0]).split())
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"

    def __str__(self) -> str:
        return self.message if self.fix is None else f"{self.message}; {self.fix}"


def quoted(path: object) -> str:
    """Return a path or another word as a command line needs it, in quotes where a shell would read it as anything else."""
    return shlex.quote(str(path))


class TextError(WorkbenchError):
    """The text source is missing, empty, or lacks the column asked for."""


class LabelError(WorkbenchError):
    """A source of labels is missing, fails, or gives something that is not a number."""


class ModelError(WorkbenchError):
    """The language model cannot be found, fetched or loaded."""


class HookError(WorkbenchError):
    """The model has no hook point of that name."""


class StoreError(WorkbenchError):
    """A store is missing, damaged, of a newer format, or does not fit what it is asked for."""


class HarvestError(WorkbenchError):
    """A harvest cannot start or continue."""


class BusyError(WorkbenchError):
    """Another process is at work in the folder."""


class GenerationError(WorkbenchError):
    """A text cannot be continued: no prompt, too long, or a setting out of range."""


class RankError(WorkbenchError):
    """The processes that work together cannot: one of them has ended, or there are more than GPUs."""


class ChatError(WorkbenchError):
    """A tokenizer has no chat template, or its template does not take the messages it is given."""


class ConfigError(WorkbenchError):
    """A setting is out of range, or two contradict each other."""


SKLEARN_SEED = 2**32 - 1
"""The largest seed that scikit-learn takes."""


def check_seed(seed: int, name: str = "seed", most: int = 2**63 - 1) -> None:
    """Raise ConfigError for a seed that the generators of torch and numpy do not take, which is told by its name."""
    if not 0 <= seed <= most:
        raise ConfigError(f"{name} = {seed} must lie between 0 and 2^{most.bit_length()} - 1")


class ShapeError(WorkbenchError):
    """A tensor does not have the shape the SAE reads."""


class RunError(WorkbenchError):
    """A run or features folder is missing, unfinished, damaged, of a newer format, or in the way."""


class DivergedError(WorkbenchError):
    """A training loss is no longer finite."""


class ForeignError(WorkbenchError):
    """Another tool's file is missing, damaged, unsafe to read, or holds what has no exact form here; or the reverse."""


class HubError(WorkbenchError):
    """A name on the Hugging Face Hub is invalid, does not exist or may not be read, or the Hub does not answer or sends damaged bytes."""


class JudgeError(WorkbenchError):
    """The language model that is to judge explanations refuses, does not answer, or answers with something else than a chat completion."""
