"""Send policies between processes as documents, since classes of stages from lone files cannot be pickled."""

import importlib
from dataclasses import dataclass
from functools import reduce
from typing import Any

import yaml

from vidsieve.framework.errors import TuneError, VidsieveError
from vidsieve.framework.policy.file import read_policy
from vidsieve.framework.policy.policy import Policy
from vidsieve.framework.registry import Registry
from vidsieve.framework.stage import cached_on_owner
from vidsieve.tuner.protocol import Intervention, SmallerInput


@dataclass(frozen=True)
class PolicyDocument:
    """A policy as its document. `homes` says by `use` in which module a stage's class is found, as module:name."""

    name: str
    hash: str
    text: str
    homes: dict[str, str]


def to_document(intervention: Intervention | None) -> PolicyDocument | SmallerInput | None:
    """Write an intervention as it travels between processes; provenance stays behind."""
    return _written(intervention) if isinstance(intervention, Policy) else intervention


@cached_on_owner(1)  # a policy is timed hundreds of times
def _written(policy: Policy) -> PolicyDocument:
    text = yaml.safe_dump(policy.to_dict(provenance=False), sort_keys=False, allow_unicode=True)
    classes = {bound.use: type(bound.stage) for bound in policy.stages}
    homes = {use: f"{found.__module__}:{found.__qualname__}" for use, found in classes.items()}
    return PolicyDocument(policy.name, policy.hash, text, homes)


class PolicyReader:
    """Reads what `to_document` made, each policy once. Stages that `registry` lacks are imported from their modules."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._read: dict[str, Policy] = {}

    def read(self, written: PolicyDocument | SmallerInput | None) -> Intervention | None:
        """Read the intervention, each policy once.

        Raises:
            TuneError: a stage is not there, or the document means another policy here.
        """
        if not isinstance(written, PolicyDocument):
            return written
        if written.hash not in self._read:
            self._read[written.hash] = self._parse(written)
        return self._read[written.hash]

    def _parse(self, written: PolicyDocument) -> Policy:
        where = f"policy {written.name!r} in the child process"
        for use, home in written.homes.items():
            if use not in self._registry.stages:
                self._registry.register(use, _imported(where, use, home))
        policy = read_policy(written.text, where, self._registry)
        if policy.hash != written.hash:
            raise TuneError(f"{where}: reads back as another policy ({policy.hash}, sent {written.hash}).")
        return policy


def _imported(where: str, use: str, home: str) -> Any:
    """Import a stage's class by its module and name."""
    module, _, name = home.partition(":")
    try:
        if module == "__main__":
            raise TuneError("it is defined in the running script")
        return reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, VidsieveError) as error:
        raise TuneError(
            f"{where}: stage {use!r} ({home}) is not there: {error}. Put its class in a file and give that as plugin."
        ) from None
