"""The web application that `sae app` serves (by hand: `streamlit run app/server.py -- RUNS`), with its password if set."""

import os

from starlette.middleware import Middleware
from streamlit.starlette import App

from app.password import PASSWORD, PasswordGate

password = os.environ.get(PASSWORD)
app = App("main.py", middleware=[Middleware(PasswordGate, password=password)] if password else [])
