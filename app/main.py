"""The app's frame: its pages, the links in the sidebar, and the display of errors. Streamlit runs it for every page.

A page is a folder and a line in PAGES. The first page lies at / as well as at its own address."""

import streamlit as st

from app import widgets
from app.compare import controls as compare
from app.features import state as features
from app.find import state as find
from app.session import address, choices, jobs, navigation, tour
from app.steering import state as steering
from app.text import state as text

# folder and URL, title, icon, and what a link to the page carries
PAGES = (
    ("runs", "Runs", ":material/table_rows:", address.with_choices("runs")),
    ("features", "Features", ":material/apps:", features.query),
    ("feature", "Feature", ":material/target:", address.feature_page),
    ("text", "Your text", ":material/text_fields:", text.query),
    ("find", "Find", ":material/search:", find.query),
    ("steering", "Steering", ":material/tune:", steering.query),
    ("dead", "Dead latents", ":material/skull:", address.with_choices("dead")),
    ("evidence", "Evidence", ":material/balance:", address.run_alone),
    ("compare", "Compare", ":material/compare_arrows:", compare.query),
    ("activations", "Activations", ":material/layers:", address.run_alone),
)

st.set_page_config(
    page_title=widgets.NAME, page_icon=str(widgets.ICON), layout="wide", initial_sidebar_state=240
)
st.html(widgets.STYLE)
st.session_state[widgets.ERRORS] = set()
pages = [st.Page(f"{name}/page.py", title=title, icon=icon, url_path=name) for name, title, icon, _ in PAGES]
# the page at /
front = st.Page("runs/page.py", title=pages[0].title, icon=pages[0].icon, url_path="front", default=True)
page = st.navigation([front, *pages], position="hidden")
listed = [front, *pages[1:]] if page == front else pages
links = [
    address.current_query() if target == page else address.link_query(query)
    for target, (*_, query) in zip(listed, PAGES, strict=True)
]
widgets.sidebar(zip(listed, links, strict=True))
with st.sidebar:
    navigation.mount(page.url_path, {"feature": choices.query("feature")})
query_of = {name: link for (name, *_), link in zip(PAGES, links, strict=True)}
tour.sidebar(query_of)
widgets.jobs_elsewhere(jobs.of_visitor)
tour.show(page.url_path or "runs", query_of)
with widgets.readable():
    page.run()
