"""Videos encoded once: what the vision side made of each clip is kept in memory and on disk, and used for scoring."""
