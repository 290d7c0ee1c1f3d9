from vidsieve import Adapter, grid_layouts, hookimpl

ADAPTER = Adapter(
    family="my-vl",
    model_classes=("MyVLForConditionalGeneration",),
    default_checkpoint="my-org/my-vl",
    layouts=grid_layouts,
)


@hookimpl
def register_models(register):
    register(ADAPTER.family, ADAPTER)
