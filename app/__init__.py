"""The browser app: runs and features as pages; started by `sae app`."""
