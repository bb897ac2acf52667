"""Who visits: a visitor is a browser, known by a cookie that the server sets, and has a session for each open tab."""

import secrets
import threading
from typing import NamedTuple

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

COOKIE = "sae_visitor"
UNKNOWN = "visitor of this session"  # key of the session of a visitor without the cookie

_sessions: dict[str, set[str]] = {}  # of each visitor, those that may still be open
_lock = threading.Lock()


class Tab(NamedTuple):
    """A visitor's tab. A reload makes another one of it."""

    visitor: str
    session: str


def me() -> Tab:
    """Return the tab that the page runs for, and note that it is open."""
    context = get_script_run_ctx()
    tab = Tab(_visitor(), context.session_id if context else "")
    with _lock:
        _sessions.setdefault(tab.visitor, set()).add(tab.session)
    return tab


def is_open(tab: Tab) -> bool:
    """Return whether the tab is still connected to the app. Without a server, as in tests, none is."""
    return runtime.exists() and runtime.get_instance().is_active_session(tab.session)


def is_here(visitor: str) -> bool:
    """Return whether any of the visitor's tabs is open. Without a server every visitor is there."""
    if not runtime.exists():
        return True
    with _lock:
        known = {session for session in _sessions.get(visitor, ()) if is_open(Tab(visitor, session))}
        if known:
            _sessions[visitor] = known
        else:
            _sessions.pop(visitor, None)
    return bool(known)


def _visitor() -> str:
    """Return what names the visitor. A browser without cookies is a new visitor at every reload."""
    cookie = st.context.cookies.get(COOKIE) if runtime.exists() else None
    if isinstance(cookie, str) and cookie:  # a stand-in for the server, as in tests of pages, has no cookies
        return cookie
    if UNKNOWN not in st.session_state:
        st.session_state[UNKNOWN] = secrets.token_urlsafe(16)
    return st.session_state[UNKNOWN]
