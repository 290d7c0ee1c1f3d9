"""`vidsieve tune --confirm policy.yaml`: does what was found elsewhere, or long ago, hold here?"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vidsieve.cli.options import StudyOptions
from vidsieve.cli.output import complain, say, say_json, write_policy
from vidsieve.framework.errors import UsageError
from vidsieve.harness.setup import Setup

if TYPE_CHECKING:
    from vidsieve.framework.policy.policy import Policy

NOT_MET = 3


def confirm_file(
    setup: Setup,
    search: Mapping[str, Any],
    study: StudyOptions,
    policies: list[str] | None,
    path: str,
    out: Path | None,
    *,
    force: bool,
    json: bool,
) -> None:
    """Measure the policy in `path` against the uncompressed model; exit code 3 where it misses its target.

    Model, workload and target come from its provenance where the options leave them out.
    """
    from vidsieve.cli.progress import opened_with_progress
    from vidsieve.framework.policy.file import load_policy
    from vidsieve.harness.model_choice import choose
    from vidsieve.harness.output_files import Outputs
    from vidsieve.harness.session import as_measured, differences
    from vidsieve.harness.setup import add_plugins
    from vidsieve.tuner.request import TuneRequest
    from vidsieve.tuner.tuning import reconfirm

    if study.devices or study.storage or study.join or policies:
        raise UsageError("--confirm: measures one policy on one device; leave out --devices, --policies, --storage.")
    registry = add_plugins(setup.plugin)
    policy = load_policy(path, registry=registry)
    outputs = Outputs(out, force=force, resumable=False) if out is not None else None
    request = TuneRequest(**_as_tuned(search, policy))
    setup = as_measured(setup, policy)
    choice = choose(setup.model, setup.checkpoint, registry)
    where: dict[str, Any] = {"devices": None, "in_process": study.in_process}
    with opened_with_progress(setup, choice, registry, request, **where, json=json) as (listener, opened):
        for sentence in differences(policy, dict(opened.bench.describe())):
            complain(f"measured elsewhere: {sentence}", kind="warning")
        result = reconfirm(opened.bench, opened.task, request, policy, listener=listener)
    if outputs is not None:
        write_policy(result, outputs)
        for sentence in outputs.write_report(result):
            complain(sentence, kind="warning")
    if json:
        say_json(result.to_dict())
    else:
        for sentence in result.sentences():
            say(sentence)
        if outputs is not None:
            say(f"\nwrote {outputs.policy}")
    if not result.confirmed:
        raise typer.Exit(NOT_MET)


def _as_tuned(search: Mapping[str, Any], policy: "Policy") -> dict[str, Any]:
    """The options, with a target and counts left out taken from the policy's provenance."""
    from vidsieve.tuner.request import TuneRequest

    provenance: Mapping[str, Any] = policy.provenance
    target = provenance.get("target") or {}
    changes: dict[str, Any] = {}
    if search["latency_ms"] is None and search["speedup"] is None:
        if target.get("speedup") is not None:
            changes["speedup"] = float(target["speedup"])
        elif target.get("value_ms") is not None:
            changes["latency_ms"] = float(target["value_ms"])
        else:
            raise UsageError(
                f"--confirm: {policy.name} stores no target (it was not tuned). Give --latency-ms or --speedup."
            )
        if target.get("metric") == "e2e_ms":
            changes["metric"] = "e2e"
    heldout = ((provenance.get("data") or {}).get("splits") or {}).get("heldout") or {}
    # half as many chose as judge; a count that was given stands
    if search["examples"] == TuneRequest.examples and heldout.get("examples"):
        changes["examples"] = max(2, round(int(heldout["examples"]) / 2))
    return {**search, **changes}
