"""The app's one door to the disk and to `sae`: cached loaders, the choice in the URL, live models, background jobs."""
