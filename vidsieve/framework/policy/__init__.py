"""Policies: the record of a composition and its rules, and their files in YAML."""
