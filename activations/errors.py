"""Every error `activations` raises on purpose: one readable line each, exit code 2 at the command line."""

LONGEST = 1000  # characters


class OneLine(Exception):
    """Its message is one line of readable length, whatever it quotes of a file or a library."""

    def __str__(self) -> str:
        line = " ".join(super().__str__().split())
        return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


class ActivationsError(OneLine):
    """Something the caller can mend: the message says what, what was found, what was needed, what to do."""


class TextError(ActivationsError):
    """The text source is missing, empty, or lacks the column asked for."""


class LabelError(ActivationsError):
    """A source of labels is missing, fails, or gives something that is no number."""


class ModelError(ActivationsError):
    """The language model cannot be found, fetched or booted."""


class HookError(ActivationsError):
    """The model has no hook point of that name."""


class StoreError(ActivationsError):
    """A store is missing, damaged, of a newer format, or does not fit what it is asked for."""


class HarvestError(ActivationsError):
    """A harvest cannot start or go on."""


class BusyError(ActivationsError):
    """Another process is at work in the folder."""


class GenerationError(ActivationsError):
    """A text cannot be gone on with: no prompt, too long, or a setting out of range."""


class RankError(ActivationsError):
    """The processes that work together cannot: one of them has ended, or there are more than GPUs."""


class ChatError(ActivationsError):
    """A tokenizer has no chat template, or its template does not take the messages it is given."""
