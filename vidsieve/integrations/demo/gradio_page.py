"""The page that gradio serves around `SideBySide`."""

from pathlib import Path
from typing import Any

from vidsieve.framework.errors import UsageError, VidsieveError
from vidsieve.integrations.demo.demo_answers import SideBySide

INTRODUCTION = """# Vidsieve
One clip, one question, with all visual tokens and with fewer. Bright: kept. Dark: dropped before the language model.
Nothing leaves this machine."""
DELETE_EVERY_S, DELETE_OLDER_S = 600, 3600
"""When gradio's copies of uploaded clips are deleted; all of them are when the page ends."""


def gradio() -> Any:
    """Import gradio. Raises UsageError where it is not installed."""
    try:
        import gradio
    except ImportError as error:
        raise UsageError(
            f"demo: gradio is not installed ({error}). pip install 'gradio>=6,<7', without constraints.txt: it "
            "wants pillow below 13."
        ) from None
    return gradio


def build_page(side_by_side: SideBySide, samples: list[list[str]], policy: str, retention_ratio: float) -> Any:
    """Build the page, a `gradio.Blocks`; `policy` (a published name or a file) and `retention_ratio` are preset."""
    gr = gradio()
    names = side_by_side.policies()
    names = names if policy in names else [policy, *names]

    def compare(video: str | None, question: str, name: str, ratio: float) -> tuple[Any, Any, str]:
        try:
            found = side_by_side.compare(video, question, name, ratio)
        except VidsieveError as error:
            raise gr.Error(str(error), print_exception=False) from None
        pictures = [(picture.numpy(), caption) for picture, caption in found.pictures]
        return found.rows, pictures, "\n\n".join(found.notes)

    with gr.Blocks(title="Vidsieve", analytics_enabled=False, delete_cache=(DELETE_EVERY_S, DELETE_OLDER_S)) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                video = gr.Video(label="Clip", sources=["upload"])
                question = gr.Textbox(label="Question")
                name = gr.Dropdown(names, value=policy, label="Policy")
                ratio = gr.Slider(0.05, 1.0, retention_ratio, step=0.05, label="Share of the visual tokens to keep")
                button = gr.Button("Compare", variant="primary")
                if samples:
                    gr.Examples(samples, [video, question], label="Clips that the bundled model can read")
            with gr.Column():
                table = gr.Dataframe(headers=["", "all tokens", "policy"], label="Side by side", interactive=False)
                notes = gr.Markdown()
        gallery = gr.Gallery(label="What is kept, unit by unit of the vision tower", columns=6, object_fit="contain")
        gr.on(
            [button.click, ratio.release, name.input],
            compare,
            [video, question, name, ratio],
            [table, gallery, notes],
            api_name="compare",
            concurrency_limit=1,
        )
    return page


def start(page: Any, host: str, port: int | None, folder: Path) -> str:
    """Serve the page from threads of its own, with the clips in `folder`, and return its address.

    Raises:
        UsageError: the port is taken, or the host is none of this machine's.
    """
    # gradio's own themes fetch fonts from another host
    theme = gradio().themes.Default(font="system-ui", font_mono="monospace")
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            theme=theme,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(folder)],
        )
    except OSError as error:
        reason = str(error).split(".")[0]
        raise UsageError(f"demo: {host}:{port or 'any port'} cannot be served ({reason}). Give another.") from None
    return str(address)
