"""Errors that the commands print as one line: a user's mistake ends them with code 2, anything else with 1."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave (a config, a path, a file), told in one line."""


class RunError(Exception):
    """What ends a run without being the user's mistake, such as a full disk: one line, and exit code 1."""


class UnreadableRecord(UserError):
    """A record of a data set that is damaged or missing; the line names it."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the known name nearest to `name`, or an empty string if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
