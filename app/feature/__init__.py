"""The Feature page."""
