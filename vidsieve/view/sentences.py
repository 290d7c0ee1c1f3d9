"""What a picture says in words: counts, and what it cannot show."""

from vidsieve.view.token_fates import Fate, Fates


def sentences(fates: Fates) -> list[str]:
    """What is not to be seen of a policy, and why."""
    where = f"policy {fates.policy!r}"
    lines = []
    if not fates.traced:
        lines.append(
            f"{where}: only the newest report of an `applied` block knows merges, scores, layers and decode steps; of "
            "this one the kept tokens are shown. Call `show` before the next `generate`."
        )
    if fates.is_whole:
        lines.append(f"{where}: keeps every visual token of the prompt, so no token is dimmed{_decode(fates)}.")
    if fates.not_run:
        labels = ", ".join(fates.not_run)
        lines.append(f"{where}: {labels} had nothing to run on (in decode that is a second generated token).")
    return [*lines, *(f"{where}: {note}" for note in fates.notes if note not in lines)]


def _decode(fates: Fates) -> str:
    if fates.reads is not None:
        return "; it acts in decode alone: see what each word read"
    return ", and there is nothing to see of it in the frames" if not fates.not_run else ""


def summary(fates: Fates) -> str:
    """The counts of a policy in one line."""
    kept, baseline = fates.prompt_tokens, fates.baseline
    parts = [f"{kept:,} of {baseline:,} visual tokens in the prompt"]
    if fates.by_layer:
        parts.append(f"{fates.attained_ratio:.1%} on average over {fates.layers} layers")
    elif baseline:
        parts[0] += f" ({kept / baseline:.1%})"
    if merged := fates.count(Fate.MERGED):
        parts.append(f"{merged:,} merged into others")
    if fates.skipped_units:
        parts.append(f"{fates.skipped_units} of {fates.units} frames not encoded")
    if fates.kv_ratio is not None:
        parts.append(f"{fates.kv_ratio:.1%} of the visual KV entries read in decode")
    return ", ".join(parts)


NAMES = {
    Fate.KEPT: "kept",
    Fate.LATER: "dropped inside the language model",
    Fate.MERGED: "merged into another",
    Fate.DROPPED: "dropped",
    Fate.SKIPPED: "frame skipped before the vision tower",
    Fate.ABSENT: "left out by the model's own processor",
}


def unit_sentence(fates: Fates, unit: int) -> str:
    """What became of one unit's tokens, in one line."""
    if (fates.fate[unit] == Fate.SKIPPED).all():
        return f"skipped: none of its {fates.fate.shape[1]} tokens were encoded"
    total = int((fates.fate[unit] != Fate.ABSENT).sum())
    parts = [f"{fates.count(Fate.KEPT, unit)} of {total} kept"]
    inside = int(((fates.fate[unit] == Fate.LATER) & (fates.target[unit] >= 0)).sum())
    if inside:
        parts.append(f"{inside} merged inside the language model")
    for fate in (Fate.MERGED, Fate.LATER, Fate.DROPPED, Fate.ABSENT):
        if count := fates.count(fate, unit) - (inside if fate == Fate.LATER else 0):
            parts.append(f"{count} {NAMES[fate]}")
    if received := int(fates.sources[unit].sum()):
        parts.append(f"{received} others merged into its tokens")
    return ", ".join(parts)


def depths(fates: Fates) -> list[tuple[int, int]]:
    """For each prune point the layer behind which it acts, and how many tokens left there."""
    kept = fates.depth[fates.depth > 0]
    return [(layer, int((kept == layer + 1).sum())) for layer in sorted(set(fates.points))]
