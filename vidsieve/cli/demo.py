"""`vidsieve demo`: a page in the browser that shows what a policy keeps and what it saves."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

from vidsieve.cli.options import Plugins, PolicyOptions, option
from vidsieve.cli.output import note, say
from vidsieve.harness.setup import Setup, add_plugins

if TYPE_CHECKING:
    from vidsieve.framework.registry import Registry
    from vidsieve.harness.model_choice import Choice

_MODEL, _WORK, _PAGE = "Model", "Workload", "Page"
RETENTION = 0.25


def demo(
    model: Annotated[
        str | None, option("--model", _MODEL, "A family (see `vidsieve ls models`), a hub id, or a checkpoint folder.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        option("--checkpoint", _MODEL, "The hub id or folder that stands for the family of --model."),
    ] = None,
    device: Annotated[
        str | None, option("--device", _MODEL, "cpu, cuda or cuda:N.  (default: cuda if there is one)")
    ] = None,
    frames: Annotated[
        int | None,
        option("--frames", _WORK, "Frames taken from each video, evenly.  (default: 16, bundled models their own)"),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        option("--max-new-tokens", _WORK, "Most tokens of an answer.  (default: 32, bundled models 4)"),
    ] = None,
    policy: Annotated[
        str, option("--policy", _PAGE, "The published policy, or YAML file, that the page starts with.")
    ] = "vidcom2",
    retention: Annotated[
        float | None,
        option(
            "--retention", _PAGE, "The share of the visual tokens that it starts with.  (default: the policy's own)"
        ),
    ] = None,
    host: Annotated[
        str, option("--host", _PAGE, "Where to listen; 0.0.0.0 lets other machines see the page.")
    ] = "127.0.0.1",
    port: Annotated[int | None, option("--port", _PAGE, "Port.  (default: the first free one from 7860)")] = None,
    plugin: Plugins = None,
) -> None:
    """Open a page: upload a clip, move the retention slider, see kept tokens, answer and milliseconds.

    Beside it stands the uncompressed model. Needs the extra `demo` (gradio). Ctrl-C ends it.
    """
    setup = Setup(
        model=model,
        checkpoint=checkpoint,
        device=device,
        frames=frames,
        max_new_tokens=max_new_tokens,
        feature_store="off",  # nothing of an uploaded clip is kept
    )
    registry = add_plugins(plugin)
    own = PolicyOptions(policy=policy, retention=retention).load(registry).retention_ratio
    from vidsieve.harness.model_choice import choose

    _serve(choose(model, checkpoint, registry), setup, registry, policy, own or RETENTION, host, port)


def _serve(
    choice: "Choice", setup: Setup, registry: "Registry", policy: str, ratio: float, host: str, port: int | None
) -> None:
    """Load the model and serve the page until Ctrl-C."""
    from vidsieve.integrations.demo.gradio_page import build_page, gradio, start

    gradio()  # if it is missing, that is said before a model is loaded
    from vidsieve.harness.model_loading import load
    from vidsieve.integrations.demo.demo_answers import SideBySide, samples

    if choice.note:
        note(choice.note)
    loaded = load(choice, setup, registry)
    with TemporaryDirectory(prefix="vidsieve-demo-") as folder:
        clips = samples(loaded, Path(folder))
        page = build_page(SideBySide(loaded, setup, registry), clips, policy, ratio)
        say(f"open {start(page, host, port, Path(folder))}")
        page.block_thread()
