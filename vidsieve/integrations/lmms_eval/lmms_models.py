"""The model `vidsieve` of lmms-eval, in its simple and its chat form."""

import functools
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vidsieve.framework.errors import InputError, MediaError, UsageError, VidsieveError
from vidsieve.integrations.lmms_eval import lmms_eval_internals

lmms_eval_internals.check()

from accelerate import Accelerator  # noqa: E402
from lmms_eval.api.model import lmms  # noqa: E402
from lmms_eval.utils import simple_parse_args_string  # noqa: E402
from loguru import logger  # noqa: E402
from tqdm import tqdm  # noqa: E402

from vidsieve.integrations.lmms_eval.generation_settings import GenerationSettings  # noqa: E402
from vidsieve.integrations.lmms_eval.model_arguments import ModelArguments, in_arguments  # noqa: E402
from vidsieve.integrations.lmms_eval.policy_model import Answered, PolicyModel  # noqa: E402
from vidsieve.integrations.lmms_eval.request_log import RequestLog  # noqa: E402
from vidsieve.integrations.lmms_eval.request_prompts import PromptWriter, RequestPrompt  # noqa: E402

Method = TypeVar("Method", bound=Callable[..., Any])
MOST_ROUNDS = 200
LIKELIHOOD_ARGUMENTS = 6
PADDING = "__padding_only__"
"""Marks requests that only keep the processes in step."""


@dataclass(frozen=True, eq=False)
class Round:
    """A round of a task of several: its prompt, the answers before it, its successor's number, the task's own state."""

    prompt: RequestPrompt
    texts: Sequence[str] = ()
    number: int = 1
    info: Any = None


def told(method: Method) -> Method:
    """End lmms-eval with a sentence where `method` raises one of our errors; otherwise it prints a traceback."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except VidsieveError as error:
            raise SystemExit(f"vidsieve: {in_arguments(error)}") from None

    return run  # type: ignore[return-value]


class Vidsieve(lmms):
    """What both forms share. The arguments are those of `ModelArguments`.

    `round_size` is how many values a task gives for a further round: the prompt's content, whether it is over, the
    answers so far, and what it wants to be given back.
    """

    round_size: int

    @told
    def __init__(self, **given: Any) -> None:
        super().__init__()
        arguments = ModelArguments.of(given)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        device = str(self.accelerator.device) if self._world_size > 1 else None
        self._model = PolicyModel.open(arguments, device, lambda text: logger.warning(f"vidsieve: {text}"))
        self._device = self._model.runner.device
        self._writer = PromptWriter(self._model.runner.processor.prompter, arguments.picture_fps)
        self._log = RequestLog(self._model.policy, self._model.facts)
        self._report = None if arguments.report is None else _of_rank(Path(arguments.report), self._rank)
        self._ignored: set[str] = set()
        logger.info(f"vidsieve: {self._log.named} on {dict(self._log.described)}")

    @classmethod
    @told
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "Vidsieve":
        """Read `--model_args`; what stands there goes before the options `--batch_size` and `--device`."""
        options = {name: value for name, value in (additional_config or {}).items() if value is not None}
        if options.pop("max_batch_size", None) is not None or str(options.get("batch_size", "")).startswith("auto"):
            raise UsageError(
                "--batch_size: must be a number; how much fits is not tried out. Leave --max_batch_size out."
            )
        return cls(**(options | simple_parse_args_string(arg_string)))

    @property
    def device(self) -> Any:
        """Where the model is."""
        return self._device

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self._model.runner.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._model.runner.processor.tokenizer

    @property
    def batch_size(self) -> int:
        """Prompts of a batch, at most."""
        return self._model.rows

    @property
    @told
    def chat_template(self) -> str:
        """Refuse `--apply_chat_template`, which asks for it."""
        raise UsageError(
            "--apply_chat_template: prompts are written in the model's chat template anyway; leave it out."
        )

    def clean(self) -> None:
        """Free the model; lmms-eval calls this before it loads a judge."""
        self.__dict__.pop("_model", None)
        super().clean()

    @told
    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request."""
        self._refuse_missing(requests)
        if self._model.policy is not None and any(map(lmms_eval_internals.keeps_responses, requests)):
            logger.warning(
                "vidsieve: --use_cache knows a policy by its name; after a change to its file, empty the cache"
            )
        answered: dict[int, Answered] = {}
        with self._progress(len(requests)) as bar:
            for places, settings in self._by_settings(requests):
                prompts = [self.prompt_of(requests[place]) for place in places]
                for place, answer in zip(places, self._model.answers(prompts, settings), strict=True):
                    answered[place] = self._noted(requests[place], answer)
                bar.update(len(places))
        self._tell()
        done = [answered[place] for place in range(len(requests))]
        return [_result(answer.text, answer) for answer in done]

    @told
    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer the rounds of each request; each is a prompt of its own, which may depend on the answers before it."""
        self._refuse_missing(requests)
        done: dict[int, list[str]] = {}
        with self._progress(len(requests)) as bar:
            for places, settings in self._by_settings(requests):
                rounds = {place: Round(self.prompt_of(requests[place])) for place in places}
                while rounds:
                    answers = self._model.answers([one.prompt for one in rounds.values()], settings)
                    following: dict[int, Round] = {}
                    for (place, one), answer in zip(rounds.items(), answers, strict=True):
                        texts = [*one.texts, self._noted(requests[place], answer).text]
                        done[place], after = self._next(requests[place], one, texts)
                        following |= {} if after is None else {place: after}
                    rounds = following
                bar.update(len(places))
        self._tell()
        return [done[place] for place in range(len(requests))]

    def _next(self, request: Any, last: Round, texts: list[str]) -> tuple[list[str], Round | None]:
        """Ask the task for what follows on `texts`: these as the task would have them, and a round that is left."""
        task = request.args[-2]
        if last.number >= MOST_ROUNDS:
            raise InputError(f"task {task}: does not end after {MOST_ROUNDS} rounds.")
        found = self.ask_round(request, previous_output=texts, round_idx=last.number, previous_round_info=last.info)
        if not isinstance(found, tuple) or len(found) != self.round_size:
            raise InputError(f"task {task}: is no task of several rounds; for a round it gives a single prompt.")
        *content, is_over, given, info = found
        texts = texts if given is None else list(given)
        if is_over:
            return texts, None
        return texts, Round(self.round_prompt(*content), texts, last.number + 1, info)

    @abstractmethod
    def prompt_of(self, request: Any) -> RequestPrompt:
        """Write the prompt of a request."""

    @abstractmethod
    def settings_of(self, request: Any) -> GenerationSettings:
        """Read how a request wants to be answered."""

    @abstractmethod
    def ask_round(self, request: Any, **state: Any) -> Any:
        """Ask the task for a further round."""

    @abstractmethod
    def round_prompt(self, *content: Any) -> RequestPrompt:
        """Write the prompt of a further round."""

    def document(self, request: Any) -> Any:
        """Find what a request is about."""
        doc_id, task, split = request.args[-3:]
        return self.task_dict[task][split][doc_id]

    def _by_settings(self, requests: Sequence[Any]) -> Iterator[tuple[list[int], GenerationSettings]]:
        """Yield portions of a batch that share their settings."""
        groups: dict[str, tuple[list[int], GenerationSettings]] = {}
        for place, request in enumerate(requests):
            settings = self.settings_of(request)
            groups.setdefault(settings.key, ([], settings))[0].append(place)
            if new := set(settings.ignored) - self._ignored:
                self._ignored |= new
                logger.warning(f"vidsieve: generation_kwargs {', '.join(sorted(new))}: not known, and not used")
        for places, settings in groups.values():
            for begin in range(0, len(places), self.batch_size):
                yield places[begin : begin + self.batch_size], settings

    def _refuse_missing(self, requests: Sequence[Any]) -> None:
        """Refuse requests whose videos are not there, all at once, before the first is answered."""
        named: dict[str, bool] = {}
        for request in requests:
            named |= self.prompt_of(request).files
        missing = [file for file, is_there in named.items() if not is_there]
        if missing:
            raise MediaError(f"{len(missing)} of {len(named)} videos are missing (the first: {missing[0]}).")

    def _noted(self, request: Any, answer: Answered) -> Answered:
        if not request.metadata.get(PADDING):
            doc_id, task, _ = request.args[-3:]
            self._log.add(task, doc_id, answer)
        return answer

    def _tell(self) -> None:
        """Log what was attained, and put it beside the scores."""
        fresh = self._log.fresh()
        for sentence in self._log.sentences():
            logger.info(sentence)
        if self._report is not None:
            self._log.write(self._report)
        lmms_eval_internals.log_request_metrics(
            elapsed_s=sum(answer.elapsed_ms for answer in fresh) / 1e3,
            new_tokens=sum(answer.output_tokens for answer in fresh),
            numbers=self._log.numbers(fresh),
        )

    def _progress(self, count: int) -> Any:
        return tqdm(total=count, disable=self.rank != 0, desc="Model Responding")


class VidsieveSimple(Vidsieve):
    """Requests of a context and visuals; the only form that tasks of `multiple_choice` have (`--force_simple`)."""

    is_simple = True
    round_size = 5

    @told
    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Score the continuation of each request: its mean loss, and whether it is what would be written."""
        if any(len(request.args) < LIKELIHOOD_ARGUMENTS for request in requests):
            raise InputError("acc_mutual_info: asks for answers without their question, which are not scored here.")
        if any(lmms_eval_internals.keeps_responses(request) for request in requests):
            raise UsageError("--use_cache: this lmms-eval cannot keep scored options; leave it out for these tasks.")
        self._refuse_missing(requests)
        found: list[Answered] = []
        with self._progress(len(requests)) as bar:
            for begin in range(0, len(requests), self.batch_size):
                part = requests[begin : begin + self.batch_size]
                prompts = [self.prompt_of(request) for request in part]
                texts = [self.continuation_of(request) for request in part]
                losses = self._model.losses(prompts, texts)
                found += [self._noted(request, answer) for request, answer in zip(part, losses, strict=True)]
                bar.update(len(part))
        self._tell()
        return [_result((answer.loss, answer.greedy), answer) for answer in found]

    def continuation_of(self, request: Any) -> str:
        """Read the text that is to be scored."""
        wanted = request.args[1]
        return str(wanted(self.document(request)) if callable(wanted) else wanted)

    def prompt_of(self, request: Any) -> RequestPrompt:
        context, _, doc_to_visual, *_ = request.args
        return self._writer.simple(context, doc_to_visual(self.document(request)))

    def settings_of(self, request: Any) -> GenerationSettings:
        return GenerationSettings.of(request.args[1])

    def ask_round(self, request: Any, **state: Any) -> Any:
        return request.args[3](self.document(request), **state)

    def round_prompt(self, *content: Any) -> RequestPrompt:
        visuals, context = content
        return self._writer.simple(context, visuals)


class VidsieveChat(Vidsieve):
    """Requests of messages."""

    is_simple = False
    round_size = 4

    @told
    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Refuse: lmms-eval has no messages for continuations."""
        raise UsageError("scored continuations: only the simple form has them; give --force_simple.")

    def prompt_of(self, request: Any) -> RequestPrompt:
        return self._writer.chat(request.args[1](self.document(request)))

    def settings_of(self, request: Any) -> GenerationSettings:
        return GenerationSettings.of(request.args[2])

    def ask_round(self, request: Any, **state: Any) -> Any:
        return request.args[1](self.document(request), **state)

    def round_prompt(self, *content: Any) -> RequestPrompt:
        [messages] = content
        return self._writer.chat(messages)


def _result(found: Any, answer: Answered) -> Any:
    return lmms_eval_internals.request_result(found, answer.input_tokens, answer.output_tokens)


def _of_rank(path: Path, rank: int) -> Path:
    """The file of one process of several: the first has the name that was given."""
    path = path.expanduser()
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--model_args report: the folder {folder} does not exist, or cannot be written to.")
    return path if rank == 0 else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
