"""A model of a real one's shape, with weights drawn here: nothing is downloaded, and billions are drawn in seconds."""

from typing import TYPE_CHECKING, Any

from vidsieve.framework.errors import UsageError
from vidsieve.harness.benchmark.model_shapes import ModelShape
from vidsieve.harness.benchmark.stand_in_tokenizer import chat_template, stand_in_tokenizer
from vidsieve.harness.model_choice import Choice
from vidsieve.harness.model_loading import Loaded, choose_device, quiet_transformers

if TYPE_CHECKING:
    from vidsieve.harness.setup import Setup

BLOCK = 1_000_003
"""Weights drawn on a CPU, repeated from there on: a prime, so that no two rows of a matrix are alike."""
DEVIATION = 0.02


def with_random_weights(shape: ModelShape, setup: "Setup", *, seed: int = 0) -> Loaded:
    """Build the model on its device in its dtype, and a processor around a stand-in tokenizer.

    Raises:
        UsageError: a device or attention kernel that is not there.
    """
    import torch
    from transformers import AutoConfig

    from vidsieve.adapters.apply import adapter_for
    from vidsieve.media.processor import VidsieveProcessor
    from vidsieve.media.processor_loading import build_encoder
    from vidsieve.media.prompter import Prompter
    from vidsieve.media.settings import Settings

    device = choose_device(setup.device)
    auto = torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = auto if setup.dtype == "auto" else getattr(torch, setup.dtype)
    with quiet_transformers():
        config = AutoConfig.for_model(**shape.config)
        model = _drawn(config, device, dtype, setup.attn, seed)
    encoder = build_encoder(config, Settings(), setup.max_pixels, shape.name)
    assert encoder is not None
    prompter = Prompter.build(stand_in_tokenizer(config), config, chat_template(config))
    adapter = adapter_for(model)
    choice = Choice(
        given=shape.name,
        kind="random",
        name=f"{shape.name} (random weights)",
        revision=f"{shape.layers[0]} of {shape.layers[1]} layers, seed {seed}",
        family=adapter.family,
    )
    return Loaded(
        model=model,
        processor=VidsieveProcessor(prompter, encoder),
        adapter=adapter,
        choice=choice,
        threads=setup.threads,
    )


def _drawn(config: Any, device: Any, dtype: Any, attn: str, seed: int) -> Any:
    """Allocate the model where it will be, without the usual initialisation, and draw its weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    try:
        with torch.device(device), _no_draws():
            model: Any = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation=attn)
    except ImportError as error:
        raise UsageError(f"`attn` {attn}: {str(error).splitlines()[0]}") from error
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                _fill(weight, generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def _fill(weight: Any, generator: Any) -> None:
    """Draw a weight from a normal distribution; on a CPU by repeating one block, at the speed of memory."""
    import torch

    if weight.device.type != "cpu" or weight.numel() <= BLOCK:
        weight.normal_(std=DEVIATION, generator=generator)
        return
    block = (DEVIATION * torch.randn(BLOCK, generator=generator)).to(weight.dtype)
    flat = weight.view(-1)
    whole = len(flat) // BLOCK * BLOCK
    flat[:whole].view(-1, BLOCK).copy_(block)
    flat[whole:].copy_(block[: len(flat) - whole])


def _no_draws() -> Any:
    """Make a mode in which zeros stand for what would be drawn at random."""
    import torch
    from torch.overrides import TorchFunctionMode

    draws = {torch.Tensor.normal_, torch.Tensor.uniform_}

    class NoDraws(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            filled = args[0] if args else kwargs.get("tensor")
            # these functions are seen whole, without what they call
            whole = getattr(func, "__module__", "") in ("torch.nn.init", "transformers.initialization")
            drawn = func in draws or (whole and func.__name__.endswith(("normal_", "uniform_")))
            if drawn and isinstance(filled, torch.Tensor):
                # zeros, because a truncated draw is repeated until every value lies within its bounds
                with torch.no_grad():
                    return filled.zero_()
            return func(*args, **kwargs)

    return NoDraws()
