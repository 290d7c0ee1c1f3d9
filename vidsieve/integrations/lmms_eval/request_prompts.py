"""What lmms-eval asks, as prompts with videos: a context with visuals (simple), or messages (chat)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import InputError
from vidsieve.framework.task import Example

if TYPE_CHECKING:
    from vidsieve.media.prompter import Prompter

Part = Mapping[str, Any]
IMAGE_MARK = "<image>"
VIDEO: Part = {"type": "video"}


@dataclass(frozen=True, eq=False)
class RequestPrompt:
    """A finished prompt and the videos it is about, in order."""

    text: str
    videos: tuple[Example, ...] = ()

    @property
    def files(self) -> dict[str, bool]:
        """Its video files, and whether each is there."""
        return {str(one.video): one.video.is_file() for one in self.videos if one.video is not None}


@dataclass(frozen=True, eq=False)
class PromptWriter:
    """Writes the prompts of one model. `picture_fps` as in `ModelArguments`."""

    prompter: "Prompter"
    picture_fps: float | None = None

    def simple(self, context: str, visuals: Any) -> RequestPrompt:
        """Write one user's turn: the visuals, then the context without the marks of pictures and videos.

        Raises:
            InputError: visuals that are no videos.
        """
        found = _flat(visuals)
        if found:
            context = context.replace(IMAGE_MARK, "").replace(self.prompter.video_token, "")
        parts = [{"type": "video" if isinstance(one, str | Path) else "image", "url": one} for one in found]
        return self.chat([{"role": "user", "content": [*parts, {"type": "text", "text": context}]}])

    def chat(self, messages: Sequence[Mapping[str, Any]]) -> RequestPrompt:
        """Write a conversation of `role` and `content`. Raises InputError for content that is no text and no video."""
        written, videos = [], list[Example]()
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                content = [{"type": "text", "text": content}]
            parts, found = self._parts(content)
            written.append({"role": message["role"], "content": parts})
            videos += found
        return RequestPrompt(self.prompter.conversation(written), tuple(videos))

    def _parts(self, content: Sequence[Part]) -> tuple[list[Part], list[Example]]:
        """Turn the parts of a message into texts and places of videos, and list these."""
        parts: list[Part] = []
        videos: list[Example] = []
        pictures: list[Any] = []

        def end_pictures() -> None:
            if pictures:
                videos.append(self._of_pictures(pictures))
                parts.append(VIDEO)
                pictures.clear()

        for part in content:
            kind = part["type"]
            if kind == "image":
                pictures.append(part["url"])
                continue
            end_pictures()
            if kind == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif kind == "video":
                videos.append(_of_file(part))
                parts.append(VIDEO)
            else:
                raise InputError(f"a question brings {kind}; only text and videos are answered.")
        end_pictures()
        return parts, videos

    def _of_pictures(self, pictures: Sequence[Any]) -> Example:
        """Make a video of the pictures in a row."""
        if self.picture_fps is None:
            raise InputError(
                "a question brings pictures, and only videos are answered. If they are frames of a video, give "
                "--model_args picture_fps=RATE, the frames of a second."
            )
        import numpy as np
        import torch
        from PIL.Image import Image

        if not all(isinstance(one, Image) for one in pictures):
            raise InputError(
                f"a question brings a {type(pictures[0]).__name__}, which is no picture and no video file."
            )
        sizes = {one.size for one in pictures}
        if len(sizes) > 1:
            raise InputError(
                f"a question brings pictures of several sizes ({sorted(sizes)}); they are no video's frames."
            )
        frames = torch.stack([torch.from_numpy(np.array(one.convert("RGB"))).movedim(-1, 0) for one in pictures])
        name = f"a video of {len(pictures)} pictures"
        return Example(id=name, group=name, question="", frames=frames, fps=self.picture_fps)


def _of_file(part: Part) -> Example:
    """Name a video file. Raises InputError for anything else, and for a part of a video."""
    url = part["url"]
    if not isinstance(url, str | Path):
        raise InputError(f"a question brings a video as {type(url).__name__}; only video files are read.")
    if part.get("start_time") is not None or part.get("end_time") is not None:
        raise InputError(f"{url}: a question is about a part of it (start_time, end_time); only whole videos are read.")
    path = Path(str(url).removeprefix("file://"))
    return Example(id=str(path), group=str(path), question="", video=path)


def _flat(visuals: Any) -> list[Any]:
    """List visuals that may come in lists of lists, or be None."""
    if visuals is None:
        return []
    if not isinstance(visuals, list | tuple):
        return [visuals]
    return [one for item in visuals for one in _flat(item)]
