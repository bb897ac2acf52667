"""The browser app that `sae app` starts: a folder per page, and what the pages share."""
