"""Whether the Hugging Face hub answers, found out in seconds: its libraries would go on trying for half a minute."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE = (
    2.5  # seconds an answer may take; HF_HUB_ETAG_TIMEOUT sets another limit, here as in the hub's library
)
OFFLINE = "HF_HUB_OFFLINE is set"


def silence() -> str | None:
    """Return why the hub cannot be asked, in a few words, or None when it answers.

    Any answer counts, an error of the hub's too. The question is asked in a thread, since looking up a host's name can
    take longer than any limit that is set for it."""
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
        except Exception as error:  # of the network, of certificates, of a proxy
            problems.append((str(error).strip() or type(error).__name__).splitlines()[0])
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(patience + 0.5):
        return f"{constants.ENDPOINT} has not answered within {patience:g} seconds"
    return f"{constants.ENDPOINT} does not answer: {problems[0]}" if problems else None


@contextmanager
def cache_alone_if_silent(name: str = "") -> Iterator[str | None]:
    """Within the block, let the hub's libraries look into their caches alone if the hub does not answer.

    The block gets the reason, as `silence` gives it. Where `name` is a folder of this machine the hub is not asked."""
    if name and Path(name).expanduser().is_dir():
        yield None
        return
    from huggingface_hub import constants

    reason = silence()
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or reason is not None
    try:
        with _data_sets_too(constants.HF_HUB_OFFLINE):
            yield reason
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _data_sets_too(offline: bool) -> Iterator[None]:
    """Hand the switch on to `datasets`, which keeps a copy of it; nothing is done where that is not loaded."""
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
