"""The Your text page."""
