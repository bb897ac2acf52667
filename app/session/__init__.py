"""State that pages share during a visit: cached runs and features, the URL's choices, loaded models, background jobs."""
