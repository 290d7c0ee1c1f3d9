"""The search on disk: one Optuna study under a lock, told apart by a fingerprint, resumed where it stopped."""
