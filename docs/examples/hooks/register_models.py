from vidsieve import hookimpl
from vidsieve.adapters.adapter import Adapter
from vidsieve.adapters.prompt.layouts import grid_layouts

ADAPTER = Adapter(
    family="my-vl",
    model_classes=("MyVLForConditionalGeneration",),
    default_checkpoint="my-org/my-vl",
    layouts=grid_layouts,
)


@hookimpl
def register_models(register):
    register(ADAPTER.family, ADAPTER)
