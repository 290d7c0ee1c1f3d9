"""docs/reference/models.md: the model families, from what their adapters say of themselves."""

from reference_pages.markdown import table
from vidsieve.bundled.bundled_models import MODELS
from vidsieve.framework.registry import Registry

HEAD = """# Model families

`--model` takes a family (or an alias), a hub id or a folder. A family without `--checkpoint` stands for its default
checkpoint if that is in the local cache, otherwise for the bundled model of that family, and a line says which; a
family with neither is refused. Nothing is downloaded unless it is named. `vidsieve ls models` also tells what is
on this machine."""


def page() -> str:
    """The page."""
    models = sorted(Registry(installed=True).models.items())
    parts = [HEAD]
    for family, adapter in models:
        bundled = next((f"`{model.name}`: {model.summary}" for model in MODELS if model.family == family), "none")
        rows = [
            ("aliases", _code(adapter.aliases)),
            ("classes in transformers", _code(adapter.model_classes)),
            ("default checkpoint", f"`{adapter.default_checkpoint}`"),
            ("bundled model", bundled),
            ("hooks carried out", _code(sorted(adapter.runs))),
            ("inputs and signals for stages", _code(sorted(adapter.offers))),
        ]
        parts += ["", f"## {family}", "", *table(("", ""), rows)]
    return "\n".join(parts)


def _code(names: object) -> str:
    assert isinstance(names, list | tuple)
    return ", ".join(f"`{name}`" for name in names)
