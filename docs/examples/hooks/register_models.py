from vidsieve import hookimpl
from vidsieve.adapters.base import Adapter
from vidsieve.adapters.layout import grid_layouts

ADAPTER = Adapter(
    family="my-vl",
    model_classes=("MyVLForConditionalGeneration",),
    default_checkpoint="my-org/my-vl",
    layouts=grid_layouts,
)


@hookimpl
def register_models(register):
    register(ADAPTER.family, ADAPTER)
