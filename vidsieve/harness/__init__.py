"""The workbench: model, data, media and policies put together for the tuner and the verbs; and `vidsieve.tune`."""

from vidsieve.harness.search_entry import tune

__all__ = ["tune"]
