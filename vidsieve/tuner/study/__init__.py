"""The search on disk: one Optuna study under a lock, identified by a fingerprint, resumed where it stopped."""
