"""What `sae app` serves, and `streamlit run app/server.py -- RUNS`: the app, behind its door where there is a password."""

import os

from starlette.middleware import Middleware
from streamlit.starlette import App

from app.password import PASSWORD, Door

password = os.environ.get(PASSWORD)
app = App("main.py", middleware=[Middleware(Door, password=password)] if password else [])
