"""How results are shown: HTML, tables and figures for the app, notebooks and files alike. Pure."""
