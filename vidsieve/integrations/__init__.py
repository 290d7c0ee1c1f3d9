"""Vidsieve inside other programs. Each imports its partner only when used."""
