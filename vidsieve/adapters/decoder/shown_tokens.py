"""What a layer stage is shown, gathered from the sequence only where the stage looks: most read a field or two."""

from collections.abc import Callable, Mapping
from typing import Any

from vidsieve.framework.records import LayerTokens


class ShownTokens(LayerTokens):
    """A `LayerTokens` some fields of which are made when they are first read, by the function in `late`."""

    def __init__(self, late: Mapping[str, Callable[[], Any]] | None = None, **fields: Any) -> None:
        vars(self).update(fields, _late=late or {})

    def __getattr__(self, name: str) -> Any:
        # asked for names that are not there alone; of a field without a default the class has nothing
        make = vars(self).get("_late", {}).get(name)
        if make is None:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        vars(self)[name] = value = make()
        return value
