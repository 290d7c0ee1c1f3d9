"""Open every clip that will be measured on before the first measurement: one bad file must not cost a search."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from vidsieve.framework.errors import MediaError, VidsieveError
from vidsieve.framework.task import Example, Split, Task
from vidsieve.harness.data.clip_reader import ClipReader

if TYPE_CHECKING:
    from vidsieve.harness.model_choice import Choice
    from vidsieve.harness.setup import Setup
    from vidsieve.media.processor import Processor
    from vidsieve.tuner.request import TuneRequest

MOST_NAMED = 50
STEP = "open clips"

Step = Callable[[str, int, int], None]
Wanted = Callable[[Task], Iterable[Example]]
"""The examples of a task that will be measured on."""
Opener = Callable[[Example], str | None]
"""Opens an example's video, and says in words why it cannot be measured on; None if it can."""


class ReadableTask:
    """A task without the examples of some videos; the others stay in the splits they were in.

    `whole` is the task with them; `skipped` gives for each video left out (an example's `group`) the reason.
    """

    def __init__(self, task: Task, skipped: Mapping[str, str]) -> None:
        self.name = task.name
        self.metric: Literal["accuracy", "agreement"] = task.metric
        self.skipped = dict(skipped)
        self.whole = task
        everything: Sequence[Example] | None = getattr(task, "all", None)
        if everything is not None:
            self.all = tuple(self._readable(everything))

    def examples(self, split: Split, count: int, *, seed: int = 0) -> Sequence[Example]:
        """Return the first `count` examples of a split whose videos can be read; fewer if there are fewer."""
        wanted = count
        while True:
            found = self.whole.examples(split, wanted, seed=seed)
            readable = self._readable(found)
            if len(readable) >= count or len(found) < wanted:
                return readable[:count]
            wanted += count - len(readable)

    def describe(self) -> dict[str, str]:
        """Describe the whole task, and which videos are left out."""
        return {**self.whole.describe(), "skipped": ", ".join(sorted(self.skipped))}

    def _readable(self, examples: Iterable[Example]) -> list[Example]:
        return [example for example in examples if example.group not in self.skipped]


def readable(
    task: Task,
    wanted: Wanted,
    opener: Opener,
    *,
    skip_bad: bool,
    notice: Callable[[str], None] = lambda text: None,
    step: Step = lambda what, done, total: None,
) -> Task:
    """Open the video of every example of `wanted(task)`; with `skip_bad`, leave out those that cannot be read.

    `step` is called with (what, done, total), `notice` with what the task says of itself, and with a sentence for each
    video left out.

    Raises:
        MediaError: videos that cannot be read, all of them at once; not with `skip_bad`.
    """
    bad: dict[str, str] = {}
    opened: set[str] = set()
    checked = task
    for text in getattr(task, "notices", ()):
        notice(text)
    while True:
        # those that take the place of bad ones are opened in the next round
        videos = {e.group: e for e in wanted(checked) if e.video is not None and e.group not in opened}
        found = {}
        for done, (group, example) in enumerate(videos.items()):
            step(STEP, done, len(videos))
            if (fault := opener(example)) is not None:
                found[group] = fault
        if videos:
            step(STEP, len(videos), len(videos))
        if not found:
            return checked
        if not skip_bad:
            raise MediaError(_listed(found.values(), len(videos)))
        for fault in found.values():
            notice(f"skipped: {fault}")
        opened |= set(videos)
        bad |= found
        checked = ReadableTask(task, bad)


def clip_opener(setup: "Setup", choice: "Choice", processor: "Processor | None" = None) -> Opener:
    """Make a function that reads both ends of an example's clip and preprocesses them, loading the processor once."""
    reader = ClipReader.of(setup, choice)
    loaded = [processor] if processor is not None else []

    def fault_of(example: Example) -> str | None:
        from vidsieve.harness.model_loading import processor_of
        from vidsieve.harness.runner import build_named

        # outside of the try: what is wrong with the checkpoint is no fault of a clip
        loaded[:] = loaded or [processor_of(choice, setup)]
        try:
            build_named(loaded[0], example.question, reader.ends(example))
        except (VidsieveError, OSError, ValueError, RuntimeError) as error:
            fault = str(error).strip() or type(error).__name__
            return fault if str(example.video) in fault else f"{example.video}: {fault}"
        return None

    return fault_of


def searched(request: "TuneRequest", setup: "Setup") -> Wanted:
    """List the examples of all splits that a search wants, and those that latency is measured on."""

    def wanted(task: Task) -> Iterator[Example]:
        from vidsieve.harness.model_bench import timed_examples

        counts: dict[Split, int] = {
            "search": request.examples,
            "rerank": request.rerank_count,
            "heldout": request.heldout_count,
        }
        for split, count in counts.items():
            yield from task.examples(split, count, seed=request.data_seed)
        yield from timed_examples(task, setup)

    return wanted


def _listed(faults: Collection[str], opened: int) -> str:
    """Write all faults as one message."""
    lines = list(faults)[:MOST_NAMED]
    if len(faults) > MOST_NAMED:
        lines.append(f"... and {len(faults) - MOST_NAMED} more")
    count = f"{len(faults)} of {opened} videos cannot be read"
    return "\n".join([*lines, f"data: {count}. Mend or remove them, or give `skip_bad` to go on without them."])
