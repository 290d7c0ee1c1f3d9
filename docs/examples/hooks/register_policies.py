from pathlib import Path

from vidsieve import hookimpl


@hookimpl
def register_policies(register):
    for path in sorted(Path(__file__).with_name("policies").glob("*.yaml")):
        register(path)
