"""The child process: `python -m vidsieve.harness.process.child_main PIPE LIFELINE`, two inherited file descriptors.

It serves one bench through PIPE and ends when LIFELINE is closed, which the death of its parent does, however it came.
"""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection


def main() -> None:
    """Serve until the parent goes."""
    pipe, lifeline = (int(word) for word in sys.argv[1:3])
    for descriptor in (pipe, lifeline):
        os.set_inheritable(descriptor, False)
    # the parent handles an interruption; it decides what becomes of the work here
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(lifeline,), name="lifeline", daemon=True).start()
    from vidsieve.harness.process.serving import serve

    serve(Connection(pipe))


def _end_with_parent(lifeline: int) -> None:
    """Block until the other end is closed; nothing is ever written to it."""
    os.read(lifeline, 1)
    # not an ordinary exit: the main thread may be deep in a computation
    os._exit(0)


if __name__ == "__main__":
    main()
