"""What the card of a bundled model holds besides its tables of accuracy."""
