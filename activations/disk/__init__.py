"""Bytes on disk: whole files or none, locks, typed records, tables."""
