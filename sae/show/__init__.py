"""How results look as HTML: one renderer for the app, for notebooks and for files that open offline. Pure."""
