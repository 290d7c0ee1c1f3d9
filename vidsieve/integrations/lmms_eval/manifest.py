"""The entry point that lmms-eval calls when it lists its models, whichever of them will be run."""

from typing import Any

MODEL = "vidsieve"
_MODULE = "vidsieve.integrations.lmms_eval.lmms_models"


def manifest() -> Any:
    """Name the two classes. They are imported, and lmms-eval is looked at, when the model is asked for by name.

    Raises:
        RuntimeError: this lmms-eval takes another manifest; it goes on without the model and logs the sentence.
    """
    from vidsieve.integrations.lmms_eval.lmms_eval_internals import INSTALL, SUPPORTED

    try:
        from lmms_eval.models.registry_v2 import ModelManifest

        return ModelManifest(
            model_id=MODEL, simple_class_path=f"{_MODULE}.VidsieveSimple", chat_class_path=f"{_MODULE}.VidsieveChat"
        )
    except (ImportError, TypeError, ValueError) as error:
        raise RuntimeError(
            f"vidsieve: the model {MODEL!r} is missing, because this lmms-eval takes another manifest ({error}); "
            f"tried with {', '.join(SUPPORTED)}: {INSTALL}"
        ) from error
