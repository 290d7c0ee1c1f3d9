"""`applied` and `compress`: a policy around an ordinary `model.generate(**inputs)`, or around a plain forward."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import chain
from threading import Condition, Lock, RLock, Thread, current_thread, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch

from vidsieve.adapters.adapter import Adapter, VideoModel
from vidsieve.adapters.generate_arguments import GenerateArguments, filler_id, read_mask
from vidsieve.adapters.generate_call import GenerateCall
from vidsieve.adapters.prompt.positions import model_positions
from vidsieve.adapters.prompt.shortening import Request, Shortened, shorten
from vidsieve.adapters.transformers_internals import GENERATE_START, needed, vision_inputs
from vidsieve.adapters.vision.encoding import encode
from vidsieve.framework import registry
from vidsieve.framework.errors import InputError, ModelError, PolicyError, UsageError
from vidsieve.framework.hookspecs import STAGE_HOOKS
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.report import Report


def adapter_for(model: VideoModel) -> Adapter:
    """The adapter of a model's family.

    Raises:
        ModelError: no adapter fits its class; the message lists the classes that have one.
    """
    found = _adapter_of(type(model))
    if found is not None:
        return found
    known = ", ".join(sorted(name for one in registry.default().models.values() for name in one.model_classes))
    raise ModelError(
        f"model: no adapter for {type(model).__name__}. Adapters exist for: {known}. Pass the "
        f"...ForConditionalGeneration model itself{_part_that_fits(model)}, or write an adapter."
    )


def _part_that_fits(model: VideoModel) -> str:
    """Where a model with an adapter is within an object that is none."""
    parts = chain(getattr(model, "__dict__", {}).items(), getattr(model, "_modules", {}).items())
    name = next((name for name, part in parts if _adapter_of(type(part)) is not None), None)
    return "" if name is None else f" (here its `.{name}`)"


def unwrapped(model: VideoModel) -> VideoModel:
    """The transformers model inside PEFT, DistributedDataParallel, `torch.compile(model)` and wrappers of their kind.

    Raises:
        ModelError: PEFT puts virtual tokens in front of the prompts.
    """
    while _adapter_of(type(model)) is None:
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                f"model: {type(model).__name__} puts virtual tokens of prompt learning in front of each prompt, whose "
                "positions a compressed prompt does not have. Use an adapter in the weights, such as LoRA."
            )
        base = getattr(type(model), "get_base_model", None)
        inner = model if base is None else base(model)
        for name in ("_orig_mod", "module"):
            inner = getattr(model, name, inner) if inner is model else inner
        if inner is model or not isinstance(inner, torch.nn.Module):
            break
        model = inner
    return model


def _adapter_of(model_class: type) -> Adapter | None:
    """The adapter that names the class, or the nearest class it inherits from that one names."""
    adapters = reversed(registry.default().models.values())  # of two that name a class, the first registered
    named = {name: one for one in adapters for name in one.model_classes}
    return next((named[base.__name__] for base in model_class.__mro__ if base.__name__ in named), None)


def check_policy(adapter: Adapter, policy: Policy) -> None:
    """Refuse, before the model runs, a policy that this family cannot carry out.

    Raises:
        PolicyError: a stage acts where the adapter cannot, or needs an input the adapter does not offer.
    """
    if policy.hooks <= adapter.runs and policy.needs() <= adapter.offers:
        return
    for bound in policy.stages:
        where = f"policy {policy.name!r}, stage {bound.label!r}"
        for hook in bound.hooks:
            if hook not in adapter.runs:
                can = ", ".join(name for name in STAGE_HOOKS if name in adapter.runs)
                raise PolicyError(
                    f"{where}: acts in {hook}, which the adapter for {adapter.family} does not carry out (it runs "
                    f"{can}). Use a policy without that stage."
                )
        missing = sorted(bound.stage.needs() - adapter.offers)
        if missing:
            raise PolicyError(
                f"{where}: needs {', '.join(missing)}, which the adapter for {adapter.family} does not offer (it "
                f"offers {', '.join(sorted(adapter.offers))}). Use another stage or model family."
            )


@dataclass(eq=False)
class Applied:
    """A block in which `model.generate(**inputs)` runs under a policy.

    `reports[-1]` tells what the policy did in the last call of `generate`. `model` is the transformers model, without
    the wrappers that were given around it.
    """

    model: VideoModel
    adapter: Adapter
    policy: Policy
    seed: int = 0
    reports: list[Report] = field(default_factory=list)
    _stand_in: "_Generate | None" = field(default=None, init=False, repr=False)

    def __enter__(self) -> "Applied":
        queue_of(self.model).change(self._begin)
        return self

    def __exit__(self, *error: object) -> None:
        queue_of(self.model).change(self._end, after_calls=True)

    def _begin(self) -> None:
        if self._stand_in is not None:
            state = "is open already" if self._stand_in.open else "has ended"
            raise UsageError(
                f"applied: this block of policy {self.policy.name!r} {state}; one `applied(...)` is entered once. Call "
                "`applied(model, policy)` again for another block."
            )
        found = vars(self.model).get("generate")
        if isinstance(found, _Generate):
            other = "" if found.thread == get_ident() else " from another thread"
            raise UsageError(
                f"applied: policy {found.handle.policy.name!r} is already applied to this model{other}; leave its "
                f"`with` block before applying {self.policy.name!r}. Threads may share one block: their calls queue."
            )
        self._stand_in = _Generate(self)
        self.model.__dict__.update(self._stand_in.puts)

    def _end(self) -> None:
        assert self._stand_in is not None
        self._stand_in.open = False
        for name in self._stand_in.puts:
            self.model.__dict__.pop(name, None)
        self.model.__dict__.update(self._stand_in.found)


def applied(model: VideoModel, policy: Policy, *, seed: int = 0) -> Applied:
    """A `with` block in which `model.generate(**inputs)` runs under `policy`; callers keep their inputs and outputs.

    Returned sequences hold the original prompt, `max_length` counts it, and a cache that a call returned may be given
    to the next one together with the full-length ids, also as a copy (`copy.deepcopy`, `pickle`); where tokens were
    removed, it refuses to be continued outside a block. Stopping criteria, logits processors,
    `prefix_allowed_tokens_fn` and streamers see the original prompt followed by the new tokens, and so do the rules
    that settings make (`repetition_penalty`, `no_repeat_ngram_size`, `min_length`, …). Plain `model(**inputs)` is not
    touched (see `compress`); other ways to generate (`type(model).generate`, `generate_batch`) are refused. When the
    block ends, also by an exception, the model is as it was.

    Calls of `generate` from several threads queue, one at a time on a model, and the block ends when those begun in it
    have. Copies of the model made meanwhile (`deepcopy`, `pickle`, `torch.save`) come without the policy. Prompts with
    a video must be padded on the left, under the empty policy too.

    Args:
        model: a transformers video LLM whose family has an adapter, or a wrapper around it: PEFT (calls of the
            wrapper's `generate` reach the model), DistributedDataParallel, `torch.compile(model)`.
        policy: what `load_policy` gave.
        seed: of stages that draw random numbers.

    Raises:
        ModelError: no adapter for this class.
        PolicyError: the family cannot carry the policy out.
        UsageError: on entering, a policy is already applied to this model, or the block was entered before.
    """
    model = unwrapped(model)
    adapter = adapter_for(model)
    check_policy(adapter, policy)
    return Applied(model, adapter, policy, seed)


_OTHER_WAYS = (
    "generate_batch",
    "init_continuous_batching",
    "continuous_batching_context_manager",
)


class _Generate:
    """Stands for `model.generate` on the instance while a policy is applied.

    `puts` are all attributes of the instance then, the other ways to generate among them; `found` are those that stood
    there before.
    """

    def __init__(self, handle: Applied) -> None:
        self.handle, model = handle, handle.model
        self.original = self.__wrapped__ = model.generate
        self.open, self.thread, self.queue = True, get_ident(), queue_of(model)
        self._call: GenerateCall | None = None
        ways = (name for name in _OTHER_WAYS if hasattr(model, name))
        # every `generate` calls the first, also one that is not the instance's
        others = {name: self._guarded(name) for name in (GENERATE_START, *ways)}
        self.puts: dict[str, Any] = {"generate": self, "__reduce_ex__": self.reduce_model, **others}
        self.found = {name: value for name, value in vars(model).items() if name in self.puts}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        handle = self.handle
        if self.queue.inside:
            return self._within(args, kwargs)
        with self.queue.turn(self._check_open):
            arguments = GenerateArguments.read(handle.adapter, handle.model, self.original, args, kwargs)
            self._call = GenerateCall(handle.adapter, handle.model, handle.policy, handle.seed, arguments)
            try:
                output, report = self._call.run(self.original)
            finally:
                self._call = None
            if handle.reports:
                handle.reports[-1].traces = ()
            handle.reports.append(report)
        return output

    def _guarded(self, name: str) -> Any:
        """A method of the model that generates, or is called where it does, refused outside the calls of the block."""
        original, said = needed(self.handle.model, name), "generate" if name == GENERATE_START else name

        @wraps(original)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if self.queue.inside:
                return original(*args, **kwargs)
            raise UsageError(
                f"{said}: would generate without policy {self.handle.policy.name!r}, which is applied to this model by "
                "`model.generate` alone. Call `model.generate(...)` on the model itself (not by its class, a method "
                "taken before the block, or continuous batching), or leave the `with` block."
            )

        return guarded

    def _within(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call from within a call: a `custom_generate` that continues with the ids it was given, or an error."""
        given = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if self._call is None or given is None or given is not self._call.given_ids:
            raise UsageError(
                "generate: was called from within a running call on the same model (by a logits processor, stopping "
                "criterion, streamer or hook), whose hooks and cache are on the model. Call it before or after."
            )
        return self.original(*args, **kwargs)

    def _check_open(self) -> None:
        if not self.open:
            raise UsageError(
                f"generate: the `with` block of policy {self.handle.policy.name!r} has ended, and this call was made "
                "with the `model.generate` of the block. Call `model.generate` anew for the uncompressed model; join "
                "threads before the block ends."
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (self.handle.model, "generate")

    def reduce_model(self, protocol: Any) -> Any:
        """What `copy`, `pickle` and `torch.save` make a copy from: the model as it was before the block."""
        model = self.handle.model
        if self.queue.inside:
            raise UsageError(
                "model: cannot be copied or pickled from within one of its calls of `generate`, whose hooks the copy "
                "would keep. Do it before the call or after it."
            )
        with self.queue.turn():
            reduce: Any = type(model).__reduce_ex__
            function, arguments, state, *rest = reduce(model, protocol)
            state = {name: value for name, value in state.items() if name not in self.puts}
        return function, arguments, state | self.found, *rest


def compress(
    model: VideoModel, inputs: Mapping[str, Any], policy: Policy, *, seed: int = 0
) -> tuple[dict[str, Any], Report]:
    """Inputs for a plain `model(**inputs)` with the policy's tokens removed, and what was done.

    Vision runs here, once and without gradients (the tower and projector get none from a loss on the output): the
    returned inputs hold features instead of pixels, a mask, and explicit positions. Padding stays on its side, and
    nothing is left on the model. A loop that decodes by hand passes, with every token, the mask with one more column
    and `position_ids[..., -1:] + 1`; without them the model would count on from the length of the shorter prompt.
    Stages inside the language model and KV stages need `applied`; the Report names them in `not_run`.

    Raises:
        as `applied`; InputError when placeholders and videos do not fit.
    """
    model = unwrapped(model)
    adapter = adapter_for(model)
    check_policy(adapter, policy)
    ids = inputs.get("input_ids")
    if ids is None:
        raise InputError("compress: input_ids are missing; pass what the processor returned.")
    config = getattr(model, "generation_config", None) or model.config
    pad_id = getattr(config, "pad_token_id", None)
    request = Request(
        adapter=adapter,
        model=model,
        policy=policy,
        inputs=inputs,
        ids=ids,
        mask=read_mask(ids, inputs.get("attention_mask"), None, ()),
        pad_id=filler_id(model, pad_id),
        seed=seed,
    )
    with queue_of(model).turn():
        short = shorten(request)
        return _forward_inputs(request, short), short.report


def _forward_inputs(request: Request, short: Shortened) -> dict[str, Any]:
    """What `model(...)` is given. The mask is always there: it keeps position gaps from looking like packed prompts."""
    model, columns = request.model, short.columns
    with torch.no_grad():
        image = None if request.adapter.modality == "image" else encode(model, "image", request.inputs)
    named = {"image": image} | {request.adapter.modality: short.features}
    features = {name: value for name, value in named.items() if value is not None}
    spent = {*vision_inputs(model, "image", "video"), *request.adapter.spent}
    rest = {name: value for name, value in request.inputs.items() if name not in spent}
    rest |= {"input_ids": columns.ids, "attention_mask": columns.mask, **columns.others}
    rest["position_ids"] = model_positions(columns)
    if features:
        rest["mm_encoder_outputs"] = features
    return rest


class CallQueue:
    """Gives the calls on one model their turn, one at a time, whatever thread they come from."""

    def __init__(self) -> None:
        self._turn = RLock()
        self._state = Condition(Lock())
        self._calls: dict[object, Thread] = {}
        self._running: Thread | None = None

    @property
    def inside(self) -> bool:
        """Whether this thread is within a call."""
        return self._running is current_thread()

    @contextmanager
    def turn(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for the turn and have it while open; `check` refuses by raising, before the wait and after it."""
        call = object()
        try:
            with self._state:
                check()
                self._calls[call] = current_thread()
            with self._turn:
                check()
                outer, self._running = self._running, current_thread()
                try:
                    yield
                finally:
                    self._running = outer
        finally:
            with self._state:
                self._calls.pop(call, None)
                self._state.notify_all()

    def change(self, action: Callable[[], None], *, after_calls: bool = False) -> None:
        """Do `action` while no call can join the queue; `after_calls`, once those of other threads are done.

        Within a call there is no such wait, because it has the turn that the others wait for.
        """
        with self._state:
            try:
                if after_calls and not self.inside:
                    self._state.wait_for(lambda: all(one is current_thread() for one in self._calls.values()))
            finally:
                action()


_QUEUES: WeakKeyDictionary[VideoModel, CallQueue] = WeakKeyDictionary()
_MAKING = Lock()


def queue_of(model: VideoModel) -> CallQueue:
    """The queue of a model; it lives as long as the model."""
    with _MAKING:
        return _QUEUES.setdefault(model, CallQueue())
