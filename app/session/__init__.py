"""State that pages share during a session: cached runs and features, the URL's choices, loaded models, background jobs."""
