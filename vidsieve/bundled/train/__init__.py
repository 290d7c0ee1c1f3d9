"""The code that trained the bundled models. Run through `scripts/train_bundled.py`; nothing else imports it."""
