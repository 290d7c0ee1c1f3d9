"""The vision side: one pass of the tower, its units, and what is read off it."""
