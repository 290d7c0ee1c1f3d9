"""Every name and assumption of lmms-eval that the integration rests on, checked before a model is loaded.

It assumes besides: `generate_until` and its siblings are given `Instance`s whose `args` are as `request_prompts` reads
them; `multiple_choice` takes the least value that `loglikelihood` returns, so that is a loss; numbers among the metrics
of `log_metrics` are averaged into the results; an exception is told with a traceback and SystemExit is passed on.
"""

from typing import Any

from vidsieve.integrations.partner_names import missing_names, release

SUPPORTED = ("0.7",)
"""Releases it was tried with."""
NAMES = {
    "accelerate": ("Accelerator",),
    "filelock._api": ("FileLockMeta",),  # of filelock 3, for lmms-eval itself, which would end with a traceback
    "lmms_eval.api.instance": ("GenerationResult", "TokenCounts", "Instance.args"),
    "lmms_eval.api.model": ("lmms.create_from_arg_string", "lmms.clean"),
    "lmms_eval.models.model_utils.gen_metrics": ("log_metrics",),
    "lmms_eval.models.registry_v2": ("ModelManifest",),
    "lmms_eval.utils": ("simple_parse_args_string",),
    "loguru": ("logger",),
}
INSTALL = "pip install 'vidsieve[lmms-eval]' into an environment of its own"


def check() -> None:
    """Refuse an lmms-eval that is not there, or another one.

    Raises:
        SystemExit: a name that is needed is missing; lmms-eval ends with a sentence.
    """
    found = release("lmms-eval") or release("lmms_eval")
    missing = missing_names(NAMES)
    if missing:
        had = f"lmms-eval {found}" if found else "lmms-eval of this environment"
        raise SystemExit(f"vidsieve: {had} has no {', '.join(missing)}; tried with {', '.join(SUPPORTED)}: {INSTALL}.")


def log_request_metrics(*, elapsed_s: float, new_tokens: int, numbers: dict[str, float]) -> None:
    """Put `numbers` beside the scores, in the table and in the results file."""
    from lmms_eval.models.model_utils.gen_metrics import log_metrics

    speed = new_tokens / elapsed_s if elapsed_s else 0.0
    log_metrics(
        total_elapsed_time=elapsed_s, total_gen_tokens=new_tokens, avg_speed=speed, additional_metrics=dict(numbers)
    )


def request_result(found: Any, input_tokens: int, output_tokens: int) -> Any:
    """Make what lmms-eval is given for one request: `found` is the text, or the loss of a continuation and its greed.

    Release 0.7.3 takes anything but text for text unless it comes in this wrapping: a bare pair would reach the task as
    a string, and every task of `multiple_choice` would fail. Kept responses lose the wrapping again.
    """
    from lmms_eval.api.instance import GenerationResult, TokenCounts

    return GenerationResult(
        text=found, token_counts=TokenCounts(input_tokens=input_tokens, output_tokens=output_tokens)
    )


def keeps_responses(request: Any) -> bool:
    """Whether lmms-eval was told to keep responses (`--use_cache`); the task that a request comes from knows."""
    tasks = [getattr(argument, "__self__", None) for argument in request.args]
    return any(getattr(getattr(task, "args", None), "use_cache", None) for task in tasks)
