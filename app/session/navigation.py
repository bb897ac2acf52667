"""Moves within the app that do not reload it: one new entry of the browser's history for each page that is opened.

`st.switch_page` first gives the old page the new page's query, which stays in the history as an entry of its own, and a plain
link reloads the app, which ends the session. A small script in every page does both otherwise: it notes the address in the
history and then does what the browser's Back does, which Streamlit follows within the session."""

from collections.abc import Mapping
from secrets import token_hex
from typing import NamedTuple
from urllib.parse import urlencode

import streamlit as st
from streamlit.components.v2 import component

SCRIPT = """
function go(address) {
  window.history.pushState({}, "", address);
  window.dispatchEvent(new PopStateEvent("popstate"));
  document.querySelector('[data-testid="stMain"]')?.scrollTo(0, 0);
}
function bring(part, tries) {
  const found = document.querySelector(part);
  if (found) setTimeout(() => found.scrollIntoView({ block: "start" }), 300);
  else if (tries) setTimeout(() => bring(part, tries - 1), 100);
}
const page = (address) => address.pathname.split("/").pop();
const plain = (event) => !(event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
function follow(event) {
  const link = event.target.closest?.(".sae a[href]");
  if (!link || !plain(event) || link.origin !== window.location.origin) return;
  event.preventDefault();
  visit(new URL(link.href));
}
function press(event) {  // on a cell of a table whose rows open a page; the table itself lets only a mouse press its buttons
  const cell = event.target.closest?.("canvas td"), rule = window.saeEnter?.[page(window.location)];
  if (event.key !== "Enter" || !plain(event) || !cell || !rule) return;
  const table = cell.closest("table"), column = (of) => of.getAttribute("aria-colindex");
  const heads = Object.fromEntries([...table.querySelectorAll("th")].map((th) => [th.textContent, column(th)]));
  if (heads.feature !== column(cell)) return;
  const address = new URL(rule.page, window.location);
  for (const [name, value] of Object.entries(rule.query)) address.searchParams.set(name, value);
  for (const [name, head] of Object.entries(rule.cells)) {
    const text = cell.parentElement.querySelector(`td[aria-colindex="${heads[head]}"]`)?.textContent.trim();
    if (!text) return;
    address.searchParams.set(name, text);
  }
  event.preventDefault();
  event.stopPropagation();
  visit(address);
}
function visit(address) {
  const carried = window.saeCarried?.[page(address)] ?? {};
  for (const [name, value] of Object.entries(carried))
    if (!address.searchParams.has(name)) address.searchParams.set(name, value);
  go(address.href);
}
const ownsArrows = ["slider", "radio", "radiogroup", "tab", "combobox", "listbox", "option", "grid", "menu", "dialog", "group"];
const takesArrows = `input, textarea, select, table, canvas, [contenteditable], ${ownsArrows.map((role) => `[role="${role}"]`)}`;
function step(event) {  // an arrow key, which Streamlit answers without a click: the button is clicked, so that `hold` sees the press
  const name = { ArrowLeft: "Previous", ArrowRight: "Next" }[event.key];
  if (!name || !plain(event) || event.target.closest?.(takesArrows)) return;
  const button = [...(steps()?.querySelectorAll("button") ?? [])].find((button) => button.textContent.includes(name));
  if (!button) return;
  event.preventDefault();
  event.stopImmediatePropagation();
  if (!event.repeat || !window.saeHeld) button.click();  // a key held down would go on after it is let go
}
const steps = () => document.querySelector('[class*="st-key-step-"]');
const place = (found) => found && [...found.classList].find((name) => name.startsWith("st-key-step-"));
function hold(event) {  // a press of a step that comes before the page has answered the last one: Streamlit would make one of both
  const button = event.target.closest?.('[class*="st-key-step-"] button');
  if (!button) return;
  if (!window.saeHeld) {
    window.saeHeld = [];
    release(place(steps()), window.location.pathname, 1200);  // a minute: a busy machine answers late
    return;
  }
  event.preventDefault();
  event.stopImmediatePropagation();
  window.saeHeld.push(button.textContent);
}
function release(before, path, tries) {  // presses that wait are dropped where the visitor has left the page, or it never answers
  const now = steps(), same = window.location.pathname === path;
  if (same && tries && place(now) === before) return setTimeout(() => release(before, path, tries - 1), 50);
  const [next, ...rest] = window.saeHeld;
  window.saeHeld = null;
  if (!same || !tries || !next || !now) return;
  [...now.querySelectorAll("button")].find((button) => button.textContent === next)?.click();
  window.saeHeld?.push(...rest);
}
export default function({ data }) {
  if (!window.saeFollows) {
    window.saeFollows = true;
    document.addEventListener("click", hold, true);
    document.addEventListener("click", follow);
    document.addEventListener("keydown", press, true);
    document.addEventListener("keydown", step, true);
  }
  const { open, complete, carry, scroll, enter, cookie } = data;
  if (cookie) document.cookie = `${cookie}=1; Max-Age=31536000; SameSite=Lax; Path=/`;
  if (enter) window.saeEnter = { ...window.saeEnter, [page(window.location)]: enter };
  if (scroll && window.saeScrolled !== scroll.id) {
    window.saeScrolled = scroll.id;
    bring(`.st-key-${scroll.to}`, 50);
  }
  window.saeCarried = carry ?? window.saeCarried;
  if (open && window.saeOpened !== open.id) {
    window.saeOpened = open.id;
    go(open.address);
  }
  const present = [...new URLSearchParams(window.location.search)];
  const whole = new URLSearchParams(complete);
  if (complete && present.length < whole.size && present.every(([name, value]) => whole.has(name, value)))
    window.history.replaceState({}, "", window.location.pathname + "?" + complete);
}
"""
_mount = component("sae_navigation", js=SCRIPT, isolate_styles=False)
GOAL = "page to open"  # key of the session
SHOWN = "page shown"  # key of the session: the page that runs now
Query = Mapping[str, str | list[str]]


class Place(NamedTuple):
    """A page and what its address carries."""

    page: str
    query: Query

    @property
    def address(self) -> str:
        """Its address, relative to any other page."""
        return f"{self.page}?{urlencode(self.query, doseq=True)}"


def here() -> Place:
    """Return the page that is shown, with its query."""
    query = {name: st.query_params.get_all(name) for name in st.query_params}
    return Place(st.session_state.get(SHOWN, ""), query)


def mount(page: str, carry: Mapping[str, Query]) -> None:
    """Put the script into a page, and let it open the page that `aim` asked for.

    `carry` has the choices of this session, by page, that links in HTML add to their address."""
    st.session_state[SHOWN] = page or "runs"  # the page at / has an address of its own
    _mount(key="navigation", data={"open": st.session_state.pop(GOAL, None), "carry": carry})


def aim(page: str, query: Query) -> None:
    """Open a page at the next run of the app, as from inside a callback."""
    # the script sees its data at every run of the page, and tells by the id what it has opened already
    st.session_state[GOAL] = {"id": token_hex(8), "address": Place(page, query).address}


def open_page(page: str, query: Query) -> None:
    """Open a page now."""
    aim(page, query)
    st.rerun()


def open_on_enter(page: str, query: Query, cells: Mapping[str, str]) -> None:
    """Let the key Enter, pressed on a number in the column "feature" of this page's tables, open a page.

    Its address carries `query` and, for each name in `cells`, the text in the same row in that column."""
    with st.sidebar:
        _mount(key="enter", data={"enter": {"page": page, "query": query, "cells": cells}})


def keep_cookie(name: str) -> None:
    """Let the browser keep a cookie for a year; `st.context.cookies` has it from its next visit on."""
    with st.sidebar:
        _mount(key=f"cookie {name}", data={"cookie": name})


def show_part(key: str) -> None:
    """Scroll to the container with this key once it is drawn."""
    _mount(key=f"scroll {key}", data={"scroll": {"id": token_hex(8), "to": key}})


def complete(**choices: str) -> None:
    """Add what the page shows without being asked to its address, so that Back, a reload and a copied address show it again.

    The history has no more entries after that, and the page does not run again."""
    present = here().query
    added = {name: choice for name, choice in choices.items() if name not in present}
    if added:
        with st.sidebar:
            _mount(
                key=f"complete {' '.join(added)}",
                data={"complete": urlencode({**present, **added}, doseq=True)},
            )
