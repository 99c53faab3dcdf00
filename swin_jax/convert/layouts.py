"""What a file layout is, and telling which one a file has from its keys."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from flax import nnx

from swin_jax.convert.rules import Rule

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """A way in which published files name and place the parameters of one model class.

    Attributes:
        mark: pattern of a key that only this layout has.
        rules: alternatives for the same parameter are tried in turn.
        prepare: maps the file's tensors to the names that `rules` use, and tells what it left out and why.
        ignored: (pattern, reason) of tensors that hold nothing to load.
        head_only: pattern of tensors that mean something only together with the file's head.
        has_class_head: whether a model without the file's head is still the file's model.
        objection: tells why a model that these parameters would fit is another function; None if it is not.
    """

    name: str
    model_class: type[nnx.Module]
    mark: str
    rules: tuple[Rule, ...]
    prepare: Callable[[Tensors], tuple[Tensors, dict[str, str]]] = lambda tensors: (tensors, {})
    ignored: tuple[tuple[str, str], ...] = ()
    head_only: str = r"(?!)"
    has_class_head: bool = True
    objection: Callable[[nnx.Module], str | None] = lambda model: None

    def sources(self, path: str) -> list[tuple[Rule, tuple[str, ...]]]:
        """Return each rule about our parameter `path`, with the tensors it wants."""
        found = ((rule, rule.sources(path)) for rule in self.rules)
        return [(rule, names) for rule, names in found if names]


def strip_prefixes(*prefixes: str) -> Callable[[Tensors], tuple[Tensors, dict[str, str]]]:
    """Return a `prepare` that takes these prefixes off the names that have them, in turn."""

    def prepare(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
        for prefix in prefixes:
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        return tensors, {}

    return prepare


def detect(keys: Mapping[str, object], layouts: tuple[Layout, ...]) -> Layout | None:
    """Return the first layout whose mark is among the keys."""
    for layout in layouts:
        if any(re.search(layout.mark, key) for key in keys):
            return layout
    return None
