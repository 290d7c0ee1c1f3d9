import torch

from vidsieve import DecodeStep, KeepKV, Stage, hookimpl, tokens_to_keep, tunable


class FirstChoice(Stage):
    """Read, all through decode, the visual KV entries that the first new token attended to most."""

    keep_ratio: float = tunable(0.3, low=0.05, high=1.0, help="visual KV entries read ÷ all")

    def layers(self, num_layers: int) -> tuple[int, ...]:
        return (max(0, num_layers // 8 - 1),)

    @hookimpl
    def prune_kv(self, step: DecodeStep) -> KeepKV:
        active = step.valid.any(dim=1)
        if step.state is not None:
            return KeepKV(step.state["index"], active, state=step.state)
        counts = [tokens_to_keep(count, self.keep_ratio) for count in step.counts]
        ranking = step.attention.mean(dim=1).masked_fill(~step.valid, -1.0)
        best = ranking.argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
        place = torch.arange(best.shape[1], device=best.device)
        index = torch.where(place < torch.tensor(counts, device=best.device)[:, None], best, -1)
        return KeepKV(index, active, state={"index": index})


@hookimpl
def register_stages(register):
    register("first-choice", FirstChoice)
