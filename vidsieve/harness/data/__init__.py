"""Examples that a model is measured on: labelled files, folders of videos, the bundled task."""
