"""What several methods use. No stage lives here."""
