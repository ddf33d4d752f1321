"""The policy: text to ids, ids to batches, batches to log-probabilities, and all of it to disk and back."""
