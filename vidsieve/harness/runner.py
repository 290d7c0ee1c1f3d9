"""A model with a workload: inputs of a batch, `generate` with or without a policy, and the same on less video."""

import string
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vidsieve.framework.errors import InputError, MediaError, UsageError, VidsieveError
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report
from vidsieve.framework.task import Example
from vidsieve.harness.answer_options import ScoredPrompt, scored_prompt
from vidsieve.harness.data.clip_reader import ClipReader, FrameCache
from vidsieve.harness.encoding.clip_encodings import encodings_of
from vidsieve.harness.model_loading import Loaded
from vidsieve.tuner.protocol import Kind, SmallerInput

if TYPE_CHECKING:
    from vidsieve.harness.encoding.feature_store import FeatureStore
    from vidsieve.media.clip import Clip
    from vidsieve.media.processor import Processor
    from vidsieve.tuner.protocol import Intervention

TYPES = "mm_token_type_ids"
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


class Runner:
    """Builds inputs and generates, greedily. Processed inputs are kept on the CPU while memory allows.

    `processor` stands in for the one that was loaded with the model. With a `store`, inputs hold features in place of
    pixels, and each clip is encoded once: not for timing.
    """

    def __init__(
        self,
        loaded: Loaded,
        reader: ClipReader,
        processor: "Processor | None" = None,
        store: "FeatureStore | None" = None,
    ) -> None:
        self.loaded, self.reader = loaded, reader
        self.model, self.processor = loaded.model, processor or loaded.processor
        self._store = store
        self._encodings = None if store is None else encodings_of(loaded, reader, self.processor, store)
        self._inputs = FrameCache()
        self._visual_tokens: dict[str, int] = {}
        self._shapes: dict[str, Hashable] = {}
        self._compresses = False

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def prompt(self, example: Example) -> ScoredPrompt:
        """Write the example's prompt; a model whose vocabulary lacks the letters gets the question's own words."""
        return scored_prompt(example, as_written=not self._knows_letters)

    @cached_property
    def _knows_letters(self) -> bool:
        tokenizer = self.processor.tokenizer
        ids = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in string.ascii_uppercase]
        return all(found and tokenizer.unk_token_id not in found for found in ids)

    def alike(self, *, reader: ClipReader | None = None, processor: "Processor | None" = None) -> "Runner":
        """Make a runner of the same model, with caches of its own."""
        return Runner(self.loaded, reader or self.reader, processor or self.processor, self._store)

    def inputs(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Make what `generate` takes for a batch, on the device."""
        if self._encodings is not None:
            questions = [self.prompt(example).question for example in examples]
            made = self._typed(self._encodings.inputs(questions, examples, self._check_positions))
            self._count(examples, made)
            return made
        key = tuple(example.id for example in examples)
        built = self._inputs.get(key)
        if built is None:
            built = self.build(examples, [self.reader.clip(example) for example in examples])
            self._keep(examples, built)
        return self.on_device(built)

    def _keep(self, examples: Sequence[Example], built: dict[str, Tensor]) -> None:
        self._inputs.put(tuple(one.id for one in examples), built, sum(tensor.nbytes for tensor in built.values()))
        self._count(examples, built)

    def prompt_ids(self, examples: Sequence[Example]) -> list[Int[Tensor, " _"]]:
        """Make the ids of each prompt, for examples about one clip, which is preprocessed once; on the CPU."""
        key = ("prompts", *(example.id for example in examples))
        ids = self._inputs.get(key)
        if ids is None:
            questions = [self.prompt(example).question for example in examples]
            if self._encodings is not None:
                ids = self._encodings.prompt_ids(questions, examples[0], self._check_positions)
            else:
                ids = self._build_shared(questions, examples[0])
            self._inputs.put(key, ids, sum(tensor.nbytes for tensor in ids))
        return ids

    def clip_shape(self, example: Example) -> Hashable:
        """Return what decides the sizes of the example's inputs, but for its question."""
        if example.id not in self._shapes:
            if self._encodings is not None:
                question = self.prompt(example).question
                self._shapes[example.id] = self._encodings.shape(question, example, self._check_positions)
            else:
                self._shapes[example.id] = tuple(self.reader.clip(example).frames.shape)
        return self._shapes[example.id]

    def _count(self, examples: Sequence[Example], inputs: Mapping[str, Any]) -> None:
        """Note how many visual tokens each example's video has."""
        if all(example.id in self._visual_tokens for example in examples):
            return
        layouts = self.loaded.adapter.layouts(self.model.config, inputs)  # one for each row
        for example, layout in zip(examples, layouts, strict=True):
            self._visual_tokens[example.id] = layout.placeholders - (layout.rows - layout.visual)

    def visual_tokens(self, examples: Sequence[Example]) -> list[int]:
        """Count the visual tokens of each example's video in the prompt; structural ones are not counted."""
        for example in examples:
            if example.id not in self._visual_tokens:
                self.inputs([example])  # alone, as clips of unequal shape make no batch in some families
        return [self._visual_tokens[example.id] for example in examples]

    def build(self, examples: Sequence[Example], clips: "Sequence[Clip]") -> dict[str, Tensor]:
        """Preprocess a batch, on the CPU. A clip that is refused, such as for its size, is named by its file."""
        questions = [self.prompt(example).question for example in examples]
        try:
            inputs = self.processor.build_inputs(questions, [[clip] for clip in clips])
        except (VidsieveError, ValueError):
            for question, clip in zip(questions, clips, strict=True):
                build_named(self.processor, question, clip)
            raise  # each alone is well: it is the batch that is refused
        self._check_positions(inputs, clips)
        return self._typed(inputs)

    def build_written(self, texts: Sequence[str], clips: "Sequence[Sequence[Clip]]") -> dict[str, Tensor]:
        """Do as `build`, with finished prompts and the videos of each, perhaps none."""
        try:
            inputs = self.processor.build_written(texts, clips)
        except (VidsieveError, ValueError):
            for text, row in zip(texts, clips, strict=True):
                try:
                    self.processor.build_written([text], [row])
                except (VidsieveError, ValueError) as error:
                    raise MediaError(f"{_sources(row)}: {error}") from error
            raise  # each alone is well: it is the batch that is refused
        self._refuse_beyond(inputs, [_sources(row) for row in clips])
        return self._typed(inputs)

    def _build_shared(self, questions: Sequence[str], first: Example) -> list[Int[Tensor, " _"]]:
        """Make the ids of each question about the clip of the `first` example, and keep its inputs."""
        clip = self.reader.clip(first)
        try:
            inputs, ids = self.processor.build_shared(questions, [clip])
        except (VidsieveError, ValueError) as error:
            raise MediaError(f"{clip.source}: {error}") from error
        self._check_positions(inputs, [clip], ids)
        self._keep([first], self._typed(inputs))
        return ids

    def _check_positions(
        self,
        inputs: Mapping[str, Tensor],
        clips: "Sequence[Clip]",
        prompts: Sequence[Int[Tensor, " _"]] | None = None,
    ) -> None:
        """Refuse clips that are too long for the model, before its vision tower runs; `prompts` are all about one.

        Raises:
            InputError: naming the clip.
        """
        if prompts is not None:
            longest = max(prompts, key=len)[None]
            inputs = {name: tensor for name, tensor in inputs.items() if not name.endswith("token_type_ids")}
            inputs = {**inputs, "input_ids": longest, "attention_mask": torch.ones_like(longest)}
        self._refuse_beyond(inputs, [clip.source for clip in clips])

    def _refuse_beyond(self, inputs: Mapping[str, Tensor], sources: Sequence[str]) -> None:
        """Refuse rows that are too long for the model. Raises InputError naming the source of the first."""
        from vidsieve.adapters.prompt.shortening import beyond_positions

        fault = beyond_positions(self.loaded.adapter, self.model, inputs)
        if fault is not None:
            row, why = fault
            raise InputError(f"{sources[row]}: {why}")

    def _typed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Say what is a video where nothing else does."""
        if self._says_video:
            from vidsieve.adapters.prompt.reading import placeholders_of

            inputs[TYPES] = 2 * placeholders_of(self.loaded.adapter, self.model.config, inputs["input_ids"]).long()
        return inputs

    @property
    def _says_video(self) -> bool:
        """Whether only `mm_token_type_ids`, which the model refuses, separates a video of one frame from an image."""
        adapter = self.loaded.adapter
        return adapter.modality == "image" and TYPES in adapter.spent

    def on_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Move tensors to the model, pixels in its dtype (times and grids keep theirs)."""
        moved = {name: tensor.to(self.device) for name, tensor in inputs.items()}
        return {n: t.to(self.model.dtype) if n.startswith("pixel_values") else t for n, t in moved.items()}

    @contextmanager
    def under(self, policy: "Intervention | None") -> Iterator[list[Report]]:
        """Put the model under a policy; the list receives a report for each call of `generate`. None: as it is."""
        if not isinstance(policy, Policy):
            yield []
            return
        from vidsieve.adapters.apply import applied

        self._compresses = True
        try:
            with applied(self.model, policy) as handle:
                yield handle.reports
        finally:
            self._compresses = False

    def generate(self, inputs: dict[str, Any], max_new_tokens: int, **options: Any) -> Any:
        """Decode greedily, whatever the checkpoint's settings, unless `options` say otherwise.

        The output has `sequences`, and `logits` if scored.
        """
        settings = GREEDY | options
        model: Any = self.model
        if self._says_video and not self._compresses:
            inputs = {name: tensor for name, tensor in inputs.items() if name != TYPES}
        with torch.no_grad():
            return model.generate(
                **inputs,
                **settings,
                max_new_tokens=max_new_tokens,
                pad_token_id=self.pad_id,
                return_dict_in_generate=True,
            )

    def answers(self, inputs: dict[str, Any], sequences: Int[Tensor, "rows all"]) -> list[str]:
        """Decode what was generated after the prompt."""
        new = sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]

    @property
    def end_id(self) -> int | None:
        """The token that ends an answer; None if the model has none."""
        end = self.model.generation_config.eos_token_id
        return end[0] if isinstance(end, list) else end

    @property
    def pad_id(self) -> int:
        """The token that fills rows up."""
        config, tokenizer = self.model.generation_config, self.processor.tokenizer
        known = (config.pad_token_id, tokenizer.pad_token_id, self.end_id)
        return next((token for token in known if isinstance(token, int)), 0)


def build_named(processor: "Processor", question: str, clip: "Clip") -> dict[str, Tensor]:
    """Build the inputs of one clip. Raises MediaError with the clip's file in front of what the processor raises."""
    try:
        return processor.build_inputs([question], [[clip]])
    except (VidsieveError, ValueError) as error:
        raise MediaError(f"{clip.source}: {error}") from error


def _sources(clips: "Sequence[Clip]") -> str:
    return ", ".join(clip.source for clip in clips) or "a prompt without a video"


class Force:
    """A logits processor that makes `generate` write given tokens; it counts steps, as prompts may be shortened."""

    def __init__(self, tokens: Int[Tensor, "rows steps"]) -> None:
        self._tokens, self._step = tokens, 0

    def __call__(
        self, input_ids: Int[Tensor, "rows prompt"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        wanted = self._tokens[:, self._step : self._step + 1]
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, wanted, 0.0)


class Runners:
    """The runner of the full input, and one for each smaller input, with caches of its own: nothing can mix.

    A smaller input is what `frames` (`fps`) or `max_pixels` would make of the workload. `frame_pixels` gives the
    pixels of the largest frame that latency is measured on, as the model sees it; lower resolution is a share of that.
    Only the last smaller runner is kept: the caches of the others go with them.
    """

    def __init__(self, full: Runner, frame_pixels: Callable[[], int]) -> None:
        self.full, self._frame_pixels = full, frame_pixels
        vision = getattr(full.model.config, "vision_config", None)
        sizes = (getattr(vision, name, None) for name in ("temporal_patch_size", "temporal_merge_size"))
        self._frames_per_unit = int(next((size for size in sizes if size), 1))
        self._smaller: tuple[SmallerInput, Runner] | None = None

    @cached_property
    def kinds(self) -> frozenset[str]:
        """What can be made smaller here; families of one frame size have only fewer frames."""
        return frozenset({"frames"} if self.full.processor.capped(1) is None else {"frames", "pixels"})

    def of(self, intervention: Policy | SmallerInput | None) -> Runner:
        """Return the runner whose inputs an intervention needs.

        Raises:
            UsageError: a ratio that is none, or fewer pixels for a family that takes every frame at one size.
        """
        if not isinstance(intervention, SmallerInput):
            return self.full
        if not 0 < intervention.ratio <= 1:
            raise UsageError(
                f"{intervention.name}: the ratio must be above 0 and at most 1, got {intervention.ratio!r}."
            )
        if intervention.kind not in self.kinds:
            family = self.full.loaded.adapter.family
            raise UsageError(f"{intervention.name}: {family} takes every frame at one size; take fewer frames instead.")
        if intervention.ratio == 1:
            return self.full
        if self._smaller is None or self._smaller[0] != intervention:
            self._smaller = None  # frees the old one's caches before the new one fills its own
            make: dict[Kind, Callable[[float], Runner]] = {"frames": self._fewer_frames, "pixels": self._fewer_pixels}
            self._smaller = (intervention, make[intervention.kind](intervention.ratio))
        return self._smaller[1]

    def _fewer_frames(self, ratio: float) -> Runner:
        """Make a runner of whole units of the vision tower, at least one: half a unit costs as much as a whole one."""
        reader = self.full.reader
        if reader.frames is None:
            fps = None if reader.fps is None else reader.fps * ratio
            return self.full.alike(reader=ClipReader(None, fps))
        units = -(-reader.frames // self._frames_per_unit)
        frames = max(1, round(units * ratio)) * self._frames_per_unit
        return self.full.alike(reader=ClipReader(min(frames, reader.frames), None))

    def _fewer_pixels(self, ratio: float) -> Runner:
        processor = self.full.processor.capped(max(1, int(self._frame_pixels() * ratio + 1e-6)))
        return self.full.alike(processor=processor)
