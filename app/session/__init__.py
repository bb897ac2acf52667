"""What several pages share of a visit: cached runs and features, what the URL asks for, loaded models, background jobs."""
