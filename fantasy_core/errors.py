"""The four-part error: what went wrong, what was got, what was expected, what to do.

Raised at every boundary where a user's file, flag or graph enters; inside the core a clear torch error is enough.
Command lines print it without a traceback and exit with code 2 (`report`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """An error the user can mend. `str(error)` is the four parts, one a line."""

    def __init__(self, what: str, *, got: str, expected: str, do: str):
        self.what, self.got, self.expected, self.do = what, got, expected, do
        super().__init__(f"{what}\n  got:      {got}\n  expected: {expected}\n  do:       {do}")

    def __reduce__(self):
        """So that it comes back whole from another process."""
        return _again, (type(self), self.what, self.got, self.expected, self.do)


class NoSound(UserError):
    """There is nothing to hear: no sound track, or silence, or too little for a voice."""


class NoFace(UserError):
    """There is no face to be seen."""


def _again(kind: type[UserError], what: str, got: str, expected: str, do: str) -> UserError:
    return kind(what, got=got, expected=expected, do=do)


def some(names, limit: int = 5) -> str:
    """The first few names of a longer list, and how many there are: `a, b, c (3 of 120)`."""
    names = sorted(names)
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown} ({limit} of {len(names)})"


def report(command: Callable[[], object], *, debug: bool = False) -> int:
    """Run `command`; print a UserError without its traceback. Returns the exit code (0, 2, or 130 after Ctrl-C)."""
    try:
        command()
    except UserError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130
    return 0
