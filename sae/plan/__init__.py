"""What a harvest, a training or a reading of features would take: predicted from measured rates, nothing run."""
