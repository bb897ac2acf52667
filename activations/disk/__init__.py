"""Bytes on disk: files written whole or not at all, locks, typed records, Parquet tables."""
