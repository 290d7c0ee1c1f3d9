"""Plugins of packages that pip installed, seen from a fresh interpreter."""

from pathlib import Path

from framework.plugins import FEATURE_NORM, install, run

PLAN = """
    import torch
    from vidsieve.framework.policy.file import read_policy
    text = 'format: 1\\nname: x\\nretention_ratio: 0.25\\nstages: [{use: feature-norm, power: 2.0}, {use: top-k}]'
    policy = read_policy(text, 'x.yaml')
    features = torch.arange(16.0).view(4, 4, 1)
    print(policy.plan(features).index.tolist())
"""


def test_the_twelve_line_plugin_works_as_an_installed_package(tmp_path: Path) -> None:
    install(tmp_path, "feature_norm", FEATURE_NORM)
    assert run(PLAN, tmp_path) == "[12, 13, 14, 15]"


def test_the_twelve_line_plugin_works_as_a_lone_file(tmp_path: Path) -> None:
    file = tmp_path / "my_stage.py"
    file.write_text(FEATURE_NORM)
    load = f"""
    from vidsieve.framework.registry import default
    default().add_file({str(file)!r})
    """
    assert run(load + PLAN) == "[12, 13, 14, 15]"


def test_a_plugin_found_twice_is_one(tmp_path: Path) -> None:
    """Installed, found a second time by another copy of the same metadata, and named as a file too."""
    folder = install(tmp_path, "feature_norm", FEATURE_NORM)
    (tmp_path / "feature_norm-0.9.dist-info").mkdir()
    for name in ("METADATA", "entry_points.txt"):
        old = tmp_path / "feature_norm-1.0.dist-info" / name
        (tmp_path / "feature_norm-0.9.dist-info" / name).write_text(old.read_text().replace("feature-norm", "copy"))
    code = f"""
    from vidsieve.framework.registry import default
    default().add_file({str(folder / "__init__.py")!r})
    default().add_file({str(folder / "__init__.py")!r})
    assert not default().failures, default().failures
    """
    assert run(code + PLAN, tmp_path) == "[12, 13, 14, 15]"


def test_a_file_that_its_package_already_offers_is_one(tmp_path: Path) -> None:
    """The package registers the class of one of its files; the user names that file."""
    collect = "from feature_norm.stage import FeatureNorm, register_stages\n"
    folder = install(tmp_path, "feature_norm", {"__init__.py": collect, "stage.py": FEATURE_NORM})
    for first in ("default().stages", "None"):
        code = f"""
    from vidsieve.framework.registry import default
    {first}
    default().add_file({str(folder / "stage.py")!r})
    assert not default().failures, default().failures
    """
        assert run(code + PLAN, tmp_path) == "[12, 13, 14, 15]"


BROKEN = {
    "fails_on_import": "import a_module_that_is_not_there\n",
    "exits_on_import": "raise SystemExit(3)\n",
    "fails_on_registering": """
        from vidsieve import hookimpl
        @hookimpl
        def register_stages(register):
            raise RuntimeError("half way")
    """,
    "forgets_the_mark": "def register_stages(register): ...\n",
    "asks_for_nonsense": """
        from vidsieve import hookimpl
        @hookimpl
        def register_stages(registrar): ...
    """,
    "takes_a_built_in_name": """
        from vidsieve import Stage, hookimpl
        class Mine(Stage):
            @hookimpl
            def score_tokens(self, tokens): ...
        @hookimpl
        def register_stages(register):
            register("top-k", Mine)
    """,
    "registers_no_stage": """
        from vidsieve import hookimpl
        @hookimpl
        def register_stages(register):
            register("a-number", 3)
    """,
}


def test_broken_packages_are_named_and_break_nobody_else(tmp_path: Path) -> None:
    install(tmp_path, "feature_norm", FEATURE_NORM)
    for module, source in BROKEN.items():
        install(tmp_path, module, source)
    code = """
    from vidsieve.framework.registry import default
    from vidsieve.framework.errors import UnknownNameError
    for _ in range(2):
        assert "feature-norm" in default().stages and "dycoke" in default().policies and default().models is not None
        assert default().stages["top-k"].__module__ == "vidsieve.policies.top_k"
    try:
        default().find("stage", "feature-nrom", "here")
    except UnknownNameError as error:
        print(error)
    print(*default().failures)
    """
    *message, failures = run(code, tmp_path).splitlines()
    assert sorted(failures.split()) == sorted(BROKEN)
    told = "\n".join(message)
    assert "Did you mean 'feature-norm'" in told
    for module in BROKEN:
        assert f"plugin {module} could not be imported" in told
    assert "No module named 'a_module_that_is_not_there'" in told
    assert "already registered by vidsieve.policies" in told


def test_names_of_policies_are_known_without_torch() -> None:
    code = """
    import sys
    import vidsieve
    from vidsieve.framework.registry import default
    assert "vidcom2" in default().policies
    assert not {"torch", "transformers", "av", "optuna"} & set(sys.modules), "something heavy was imported"
    print(default().origin("policy", "vidcom2"))
    """
    assert run(code) == "vidsieve.policies"


def test_importing_vidsieve_imports_nothing_heavy_and_names_are_lazy() -> None:
    code = """
    import sys
    import vidsieve
    assert not {"torch", "pydantic", "pluggy", "yaml"} & set(sys.modules)
    assert "Stage" in dir(vidsieve) and "applied" in vidsieve.__all__
    assert vidsieve.Stage is vidsieve.Stage
    try:
        vidsieve.Stagee
    except AttributeError as error:
        print(error)
    """
    assert run(code) == "module 'vidsieve' has no attribute 'Stagee'"
