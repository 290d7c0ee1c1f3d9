"""A stranger's plugin, as a lone file and as an installed package."""

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

FEATURE_NORM = '''\
from vidsieve import Scores, Stage, VideoTokens, hookimpl, tunable

class FeatureNorm(Stage):
    """Score each visual token by the L2 norm of its feature."""
    power: float = tunable(1.0, low=0.5, high=2.0)

    @hookimpl
    def score_tokens(self, tokens: VideoTokens) -> Scores:
        return Scores(tokens.features.float().norm(dim=-1) ** self.power)

@hookimpl
def register_stages(register):
    register("feature-norm", FeatureNorm)
'''


def install(site: Path, module: str, source: str | dict[str, str], *, project: str = "") -> Path:
    """Put a package with one entry point into `site` as pip would; returns the folder of its code."""
    project = project or module.replace("_", "-")
    folder = site / module
    folder.mkdir(parents=True)
    files = {"__init__.py": source} if isinstance(source, str) else source
    for name, text in files.items():
        (folder / name).write_text(dedent(text))
    info = site / f"{project.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vidsieve]\n{module} = {module}\n")
    (info / "RECORD").write_text("")
    return folder


def run(code: str, *sites: Path) -> str:
    """What a fresh interpreter prints that has `sites` installed; it must end well."""
    path = os.pathsep.join([*map(str, sites), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
