"""The Steering page."""
