"""A child that dies at its first starts, MOST_DEATHS times."""

import os
from pathlib import Path

if __name__ == "__main__":
    with Path(os.environ["DEATHS"]).open("a") as file:
        file.write(".")
    if len(Path(os.environ["DEATHS"]).read_text()) <= int(os.environ.get("MOST_DEATHS", "99")):
        os.abort()
    from vidsieve.harness.process.child_main import main

    main()
