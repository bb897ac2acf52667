"""The `sae` command: one file a subcommand."""
