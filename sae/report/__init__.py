"""Present results as HTML, tables and figures, for the app, notebooks and files. These functions have no side effects."""
