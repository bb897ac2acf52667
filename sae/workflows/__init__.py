"""The verbs of the workbench: functions that do what the subcommands of `sae` do and return results."""
