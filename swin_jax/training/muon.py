"""Muon for the matrices of a model, Adam for what is none: which parameter takes which, and over which axes."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from swin_jax.errors import UserError
from swin_jax.training.sharding import path_name

# Kernels that Muon is not for: those by which tokens and pixels come in, and those by which classes go out.
ADAM_NAMES = ("embed", "patch_embed", "head", "head_dist")
# Kernels of more than two axes that map one axis to several; all others map all but the last axis to the last one.
SPLITTING_NAMES = ("qkv", "query", "key", "value")


def muon_mask(params: Any, adam_parameters: Sequence[str] = ()) -> Any:
    """Return the tree of booleans that says which parameters Muon is for: kernels between the embedding and the head.

    Biases, norms, tokens, tables and whatever else is not called `kernel` are Adam's, and so are the kernels that one
    of the regular expressions `adam_parameters` is found in (`re.search`). Raises UserError for one that finds none.
    """
    patterns = [_compile(pattern) for pattern in adam_parameters]
    found = set()

    def is_matrix(path: tuple[Any, ...], leaf: Any) -> bool:
        name = path_name(path)
        parts = name.split(".")
        if leaf.ndim < 2 or parts[-1] != "kernel" or any(part in ADAM_NAMES for part in parts):
            return False
        hits = {pattern for pattern in patterns if pattern.search(name)}
        found.update(hits)
        return not hits

    mask = jax.tree_util.tree_map_with_path(is_matrix, params)
    for pattern in patterns:
        if pattern not in found:
            raise UserError(f"optimizer.adam_parameters: {pattern.pattern!r} is found in no kernel that Muon is for")
    return mask


def matrix_axes(path: str, ndim: int) -> MuonDimensionNumbers:
    """Return which axes of a kernel are the matrix's input and which its output.

    `[C, 3, heads, head_dim]` of a projection to heads is `[C, 3 * heads * head_dim]`; `[heads, head_dim, C]` of one
    back, and `[height, width, in, out]` of a convolution, take all axes but the last as input.
    """
    splits = path.split(".")[-2:-1] and path.split(".")[-2] in SPLITTING_NAMES
    inputs = 1 if splits else ndim - 1
    return MuonDimensionNumbers(tuple(range(inputs)), tuple(range(inputs, ndim)))


def scale_by_muon_and_adam(
    is_matrix: Any,
    *,
    momentum: float,
    nesterov: bool,
    b1: float,
    b2: float,
    eps: float,
    momentum_dtype: str | None,
) -> optax.GradientTransformation:
    """Return the direction of either: Muon's where `is_matrix`, Adam's elsewhere.

    Muon (Keller Jordan, 2024: kellerjordan.github.io/posts/muon) makes the averaged gradient nearly orthogonal by five
    Newton–Schulz steps, and scales it by sqrt(max(1, outputs / inputs)).
    """
    muon = optax.chain(
        scale_by_muon(
            beta=momentum,
            nesterov=nesterov,
            eps=eps,
            mu_dtype=momentum_dtype,
            weight_dimension_numbers=lambda updates: jax.tree_util.tree_map_with_path(_axes_of, updates),
        ),
        optax.stateless(lambda updates, params=None: jax.tree_util.tree_map_with_path(_scale_by_shape, updates)),
    )
    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=momentum_dtype)
    return optax.chain(
        optax.masked(muon, is_matrix), optax.masked(adam, jax.tree.map(lambda matrix: not matrix, is_matrix))
    )


def _axes_of(path: tuple[Any, ...], leaf: jax.Array) -> MuonDimensionNumbers:
    return matrix_axes(path_name(path), leaf.ndim)


def _scale_by_shape(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
    axes = _axes_of(path, update)
    fan_in, fan_out = (math.prod(update.shape[axis] for axis in group) for group in axes)
    return update * max(1.0, fan_out / fan_in) ** 0.5


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise UserError(f"optimizer.adam_parameters: {pattern!r} is no regular expression: {error}") from error
