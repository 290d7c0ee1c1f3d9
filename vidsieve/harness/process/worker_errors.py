"""What can go wrong between the search and a child process that evaluates for it.

TuneError
└── WorkerError           the child cannot be used
    ├── WorkerDied        it ended while it worked; the next call starts a fresh one
    ├── WorkerCannotStart it ends each time it starts, or comes back as another; ends the search
    └── OutOfMemory       there was not enough memory, in a fresh child either
"""

from vidsieve.framework.errors import TuneError
from vidsieve.tuner.trial_failure import BenchLostError


class WorkerError(TuneError):
    """A child process that cannot be used."""


class WorkerDied(WorkerError):
    """The child ended while it worked: its signal or exit code, and what it last wrote on standard error."""


class WorkerCannotStart(WorkerError, BenchLostError):
    """The child ended at every start, or a fresh one is not the same bench."""


class OutOfMemory(WorkerError):
    """Memory ran out, and once more in a fresh child."""
