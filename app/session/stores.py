"""The stores that the app knows: those that its runs were trained on, and those below the folder that it shows."""

from pathlib import Path

import streamlit as st

from activations.errors import StoreError, quoted
from activations.store import INDEX, Store
from app.session import runs
from app.widgets import Missing
from sae.runs.run import STORE, Run


def by_name() -> dict[str, Store]:
    """Return every store under its name: its path below the folder, or the path that its runs give. One whose name another store
    has already is under its full path. Raises Missing if there is none."""
    stores = _stores(runs.folder())
    if not stores:
        why = f"Neither the runs of {runs.folder()} nor the folder itself have a store whose activations could be looked at."
        raise Missing("No stores yet", why, f"sae harvest --out {quoted(runs.folder() / 'stores' / 'demo')}")
    return stores


def of_run(name: str) -> str | None:
    """Return the name of the store that a run was trained on; None for an unknown run or one whose store is gone."""
    run = runs.by_name().get(name)
    path = _path(run) if run else None
    there = {store.path.resolve(): key for key, store in _stores(runs.folder()).items()}
    return there.get(path.resolve()) if path else None


def _path(run: Run) -> Path | None:
    if run.config.stream:
        return run.path / STORE
    return Path(run.config.store) if run.config.store else None


@st.cache_resource(ttl=runs.REFRESH_SECONDS, show_spinner=False)
def _stores(root: Path) -> dict[str, Store]:
    paths = [path for run in runs.by_name().values() if (path := _path(run))]
    paths += [index.parent for index in sorted(root.rglob(INDEX))]
    stores: dict[Path, tuple[str, Store]] = {}
    for path in paths:
        if path.resolve() in stores:
            continue
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else str(path)
        taken = {taken for taken, _ in stores.values()}
        try:
            stores[path.resolve()] = str(path.resolve()) if name in taken else name, Store(path)
        except StoreError:  # gone, unfinished or damaged: the pages of its runs say so
            continue
    return dict(stores.values())
