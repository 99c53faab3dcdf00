"""Which parameters learn how fast and which decay: factors for each parameter, from its path.

A path is as `stages.0.blocks.1.mlp.fc1.kernel`. Trees here have a Python number or bool for each parameter, so that
they are constants of the compiled update.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from swin_jax.errors import UserError
from swin_jax.training.sharding import path_name

Multipliers = Sequence[tuple[str, float]]  # (regular expression, factor); a path takes the first that it matches

# Parameters of more than one dimension that are never decayed, by the last part of their path. (1-D ones never are.)
NO_DECAY_NAMES = ("bias", "relative_position_bias_table", "pos_embed", "cls_token", "dist_token")
INPUT_NAMES = ("patch_embed", "pos_embed", "cls_token", "dist_token", "mask_token")  # below the first block


def decay_mask(params: Any) -> Any:
    """Return the tree of booleans that says which parameters weight decay acts on.

    None on 1-D parameters, biases of any shape (a fused qkv bias has three axes), tokens and position tables, as the
    published Swin, ViT and DeiT recipes have it.
    """
    named = re.compile(rf"(^|[._])({'|'.join(NO_DECAY_NAMES)})$")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not named.search(path_name(path)), params
    )


def decay_factors(params: Any, multipliers: Multipliers) -> Any:
    """Return the factor of each parameter's weight decay: its multiplier, else 1 or 0 as `decay_mask` says."""
    return match_multipliers("weight_decay_multipliers", multipliers, jax.tree.map(float, decay_mask(params)))


def learning_rate_factors(params: Any, *, multipliers: Multipliers, layer_decay: float = 1.0) -> Any:
    """Return the factor of each parameter's learning rate: its multiplier, else 1, times its layer's decay.

    A factor of 0 freezes the parameter.
    """
    factors = match_multipliers("learning_rate_multipliers", multipliers, jax.tree.map(lambda _: 1.0, params))
    if layer_decay == 1.0:
        return factors
    return jax.tree.map(lambda factor, scale: factor * scale, factors, layer_factors(params, layer_decay))


def frozen_mask(params: Any, learning_rate_multipliers: Multipliers) -> Any:
    """Return the tree of booleans that says which parameters have a learning rate multiplier of 0."""
    return jax.tree.map(
        lambda factor: factor == 0, learning_rate_factors(params, multipliers=learning_rate_multipliers)
    )


def match_multipliers(name: str, multipliers: Multipliers, defaults: Any) -> Any:
    """Return for each parameter the factor of the first pattern found in its path (`re.search`), else its default.

    Raises UserError for what is no pair of a regular expression and a finite factor of at least 0, and for a pattern
    that no parameter takes: a mistyped one would change nothing without a word.
    """
    compiled = _compile(name, multipliers)
    matching, taken = set(), set()

    def factor_of(path: tuple[Any, ...], default: float) -> float:
        found = [index for index, (pattern, _) in enumerate(compiled) if pattern.search(path_name(path))]
        matching.update(found)
        taken.update(found[:1])
        return compiled[found[0]][1] if found else default

    factors = jax.tree_util.tree_map_with_path(factor_of, defaults)
    for index, (pattern, _) in enumerate(compiled):
        if index not in taken:
            reason = "only parameters that an earlier pattern takes" if index in matching else "no parameter"
            raise UserError(f"optimizer.{name}: {pattern.pattern!r} matches {reason}")
    return factors


def _compile(name: str, multipliers: Multipliers) -> list[tuple[re.Pattern[str], float]]:
    compiled = []
    for pair in multipliers:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise UserError(f"optimizer.{name} takes pairs ((pattern, factor), ...), not {pair!r}")
        pattern, factor = pair
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 <= factor < math.inf:
            raise UserError(f"optimizer.{name}: the factor {factor!r} of {pattern!r} must be a number of at least 0")
        try:
            compiled.append((re.compile(pattern), float(factor)))
        except re.error as error:
            raise UserError(f"optimizer.{name}: {pattern!r} is no regular expression: {error}") from error
    return compiled


def layer_factors(params: Any, layer_decay: float) -> Any:
    """Return `layer_decay` to the power of each parameter's distance from the top of the model.

    Layer 0 is the patch embedding with positions and tokens, layer i + 1 is block i, and what is above the blocks is
    layer N + 1 of N blocks, at the full rate (BEiT, arXiv 2106.08254, and MAE). Swin counts blocks over its stages, and
    a patch merging belongs to the block below it (the official SimMIM fine-tuning code, arXiv 2111.09886).

    Raises UserError for a decay outside of (0, 1] and for a model without `blocks` or `stages`.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"optimizer.layer_decay={layer_decay} must be above 0 and at most 1 (1: off)")
    layer_of, top = _layers([path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)])
    return jax.tree_util.tree_map_with_path(lambda path, _: layer_decay ** (top - layer_of(path_name(path))), params)


def _layers(paths: Sequence[str]) -> tuple[Callable[[str], int], int]:
    """Return the function from a path to its layer, and the number of the top layer."""
    block = re.compile(r"^(?:stages\.(\d+)\.)?blocks\.(\d+)\.")
    depths: dict[int, int] = {}  # blocks of each stage; a ViT is one stage
    for match in filter(None, map(block.match, paths)):
        stage = int(match[1] or 0)
        depths[stage] = max(depths.get(stage, 0), int(match[2]) + 1)
    if not depths:
        raise UserError("optimizer.layer_decay needs a model with `blocks` or `stages` to count, as ViT and Swin have")
    below = [sum(depth for other, depth in depths.items() if other < stage) for stage in range(max(depths) + 1)]
    top = sum(depths.values()) + 1

    def layer_of(path: str) -> int:
        if match := block.match(path):
            return below[int(match[1] or 0)] + int(match[2]) + 1
        if match := re.match(r"stages\.(\d+)\.", path):
            return below[int(match[1])]
        return 0 if path.split(".")[0] in INPUT_NAMES else top

    return layer_of, top
