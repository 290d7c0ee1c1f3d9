"""docs/reference/errors.md: the tree of exceptions and the exit codes of the command line."""

from reference_pages.markdown import first_sentence, table
from vidsieve.framework import errors

HEAD = """# Errors and exit codes

Every error meant for people derives from `vidsieve.VidsieveError` and reads *where: what was asked, what came, what to
do*. The command line prints the message and no traceback; `VIDSIEVE_DEBUG=1` adds the traceback."""

CODES = (
    (0, "done; for `tune`, a policy was found"),
    (1, "any other error"),
    (2, "usage: contradicting options, unknown names, values out of range"),
    (3, "`tune`: the target lies below what any policy reaches here"),
    (130, "interrupted; `tune` has written the best policy so far, if there was one"),
)


def page() -> str:
    """The page."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    told = {kind.exit_code for kind in kinds if issubclass(kind, errors.VidsieveError)}
    assert told <= {code for code, _ in CODES}, "an exit code of errors.py is missing in CODES"
    rows = [(f"`{kind.__name__}`", kind.__mro__[1].__name__, kind.exit_code, first_sentence(kind)) for kind in kinds]
    parts = [HEAD, "", "## Exit codes", "", *table(("code", "meaning"), CODES)]
    parts += ["", "## Exceptions", "", *table(("class", "is a", "exit code", "meaning"), rows)]
    return "\n".join(parts)
