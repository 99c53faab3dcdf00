"""Classes and functions that a config names as `module:Name`: the one place where such a name is imported.

A config that the user gives may name anything. One that was found in a workdir may be a stranger's: opening it imports
only what the user allows.
"""

import contextlib
import contextvars
import importlib
from collections.abc import Collection, Iterator
from typing import Any

from swin_jax.errors import UserError

_allowed: contextvars.ContextVar[frozenset[str] | None] = contextvars.ContextVar("allowed", default=None)


def import_named(module: str, attribute: str) -> Any:
    """Return `attribute` of a module. Raises UserError where `only_allowed` forbids it, else what importing raises."""
    allowed = _allowed.get()
    name = f"{module}:{attribute}"
    if allowed is not None and name not in allowed:
        raise UserError(
            f"the workdir's config names {name!r}, which would run the code of that name: "
            f"if you know whose it is, allow it by --allow={name}"
        )
    return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def only_allowed(names: Collection[str]) -> Iterator[None]:
    """Forbid, within the context, to import any `module:Name` but these."""
    token = _allowed.set(frozenset(names))
    try:
        yield
    finally:
        _allowed.reset(token)
