"""`vidsieve serve-check`: would vLLM serve this policy, and what would become of a video?"""

from typing import Annotated

import typer

from vidsieve.cli.options import Json, PolicyOptions, option
from vidsieve.cli.output import complain, say, say_json
from vidsieve.harness.setup import Setup, add_plugins

_MODEL, _VIDEO = "Model", "Video"


def serve_check(
    policy: Annotated[str, typer.Argument(help="A published policy (see `vidsieve ls`) or a YAML file.")],
    model: Annotated[
        str | None, option("--model", _MODEL, "A family (see `vidsieve ls models`), a hub id, or a checkpoint folder.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        option("--checkpoint", _MODEL, "The hub id or folder that stands for the family of --model."),
    ] = None,
    frames: Annotated[int, option("--frames", _VIDEO, "Frames that the server takes of a video.")] = 32,
    height: Annotated[int, option("--height", _VIDEO, "Pixels of a frame.")] = 360,
    width: Annotated[int, option("--width", _VIDEO, "Pixels of a frame.")] = 640,
    retention: Annotated[
        float | None, option("--retention", "Policy", "Share of the visual tokens to keep: 0.25 is a quarter.")
    ] = None,
    json: Json = False,
) -> None:
    """Say whether vLLM would serve a policy, and how many tokens a video would take. Exit code 1 if not.

    Neither vLLM nor a GPU is needed.
    """
    registry = add_plugins(None)
    loaded = PolicyOptions(policy=policy, retention=retention).load(registry)
    from vidsieve.integrations.vllm.servability import serve_check as check

    setup = Setup(model=model, checkpoint=checkpoint)
    found = check(loaded, policy, setup, registry, frames=frames, height=height, width=width, retention=retention)
    if json:
        say_json(found.to_dict())
    else:
        say(f"policy {found.policy!r} ({found.policy_hash}) on {found.model} ({found.architecture})")
        if found.grid is not None:
            kept = "" if found.kept_tokens is None else f", {found.kept_tokens} of them served"
            size = f"{found.frames} frames of {found.width} x {found.height}"
            say(f"{size}: {found.visual_tokens} visual tokens ({' x '.join(map(str, found.grid))}){kept}")
        for reason in found.reasons:
            complain(f"not served: {reason}", kind="")
        for remark in found.remarks:
            say(f"otherwise than in transformers: {remark}")
        if not found.reasons:
            say(f"tried with vLLM {', '.join(found.vllm)}; serve it with\n  {found.command}")
    if found.reasons:
        raise typer.Exit(1)
