"""The app: `sae app RUNS` (`served` says how). A page is a file in views/ and a line here.

The first page is at / as well as at its own address."""

import streamlit as st

from app import frame
from app.session import choice, errors

# file and URL, title, icon, and what of the choice in the URL its links keep
PAGES = (
    ("runs", "Runs", ":material/table_rows:", ("run",)),
    ("features", "Features", ":material/apps:", ("run",)),
    ("feature", "Feature", ":material/target:", ("run", "feature")),
    ("text", "Your text", ":material/text_fields:", ("run",)),
    ("steering", "Steering", ":material/tune:", ("run", "feature")),
    ("dead", "Dead latents", ":material/skull:", ("run",)),
    ("compare", "Compare", ":material/compare_arrows:", ("run",)),
)

st.set_page_config(
    page_title="SAE workbench", page_icon=str(frame.ICON), layout="wide", initial_sidebar_state=240
)
st.html(frame.STYLE)
pages = [st.Page(f"views/{name}.py", title=title, icon=icon, url_path=name) for name, title, icon, _ in PAGES]
front = st.Page(
    "views/runs.py", title=pages[0].title, icon=pages[0].icon, url_path="front", default=True
)  # at /
page = st.navigation([front, *pages], position="hidden")
kept = choice.links()
links = [{key: kept[key] for key in keys if key in kept} for *_, keys in PAGES]
frame.sidebar(zip([front, *pages[1:]] if page == front else pages, links, strict=True))
with errors.readable():
    page.run()
