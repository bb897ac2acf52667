"""Checks within seconds whether the Hugging Face hub answers, since its own libraries retry for half a minute."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = 2.5  # seconds that an answer may take; HF_HUB_ETAG_TIMEOUT overrides it, as in the hub's library
OFFLINE = "HF_HUB_OFFLINE is set"


def silence() -> str | None:
    """Return why the Hugging Face Hub cannot be reached, in a few words, or None if it answers.

    Any answer counts, even an HTTP error. The request runs in a thread, since looking up a host name may take longer
    than the timeout of the request."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return OFFLINE
    patience = PATIENCE
    with suppress(ValueError):
        patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE)
    problems: list[str] = []
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=patience, follow_redirects=False)
        except Exception as error:  # the network, a certificate or a proxy may be at fault
            problems.append((str(error).strip() or type(error).__name__).splitlines()[0])
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(patience + 0.5):
        return f"{constants.ENDPOINT} did not answer within {patience:g} seconds"
    return f"{constants.ENDPOINT} does not answer: {problems[0]}" if problems else None


@contextmanager
def cache_alone_if_silent(name: str = "") -> Iterator[str | None]:
    """Within the block, let the hub's libraries use only their caches if the hub does not answer.

    Yields the reason, as `silence` returns it. If `name` is a folder on this machine, the hub is not contacted and the
    reason is None."""
    if name and Path(name).expanduser().is_dir():
        yield None
        return
    from huggingface_hub import constants

    reason = silence()
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        with _datasets_offline(constants.HF_HUB_OFFLINE):
            yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _datasets_offline(offline: bool) -> Iterator[None]:
    """Set the same switch in `datasets`, if it is imported: it copied the hub library's switch when it was."""
    config = getattr(sys.modules.get("datasets"), "config", None)
    if config is None:
        yield
        return
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
