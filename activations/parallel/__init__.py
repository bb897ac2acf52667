"""Several processes and threads: ranks, work shared among them, streams made ahead of their reader."""
