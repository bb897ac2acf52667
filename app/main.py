"""The app: `sae app RUNS` (`served` says how). A page is a file in views/ and a line here.

The first page is at / as well as at its own address."""

import streamlit as st

from app import frame
from app.session import choice, compare, errors, filters, steering, text

# file and URL, title, icon, and what its links carry
PAGES = (
    ("runs", "Runs", ":material/table_rows:", choice.run_alone),
    ("features", "Features", ":material/apps:", filters.address),
    ("feature", "Feature", ":material/target:", choice.with_feature),
    ("text", "Your text", ":material/text_fields:", text.address),
    ("steering", "Steering", ":material/tune:", steering.address),
    ("dead", "Dead latents", ":material/skull:", choice.run_alone),
    ("compare", "Compare", ":material/compare_arrows:", compare.address),
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
listed = [front, *pages[1:]] if page == front else pages
links = [
    choice.here() if one == page else choice.there(address)
    for one, (*_, address) in zip(listed, PAGES, strict=True)
]
frame.sidebar(zip(listed, links, strict=True))
with errors.readable():
    page.run()
