"""Who computes attention, by name: XLA from `dot_product_attention`, cuDNN, or the flash attention that JAX ships.

All of them take the place of `dot_product_attention` and compute the same, or raise: none drops a mask silently. Where
attention is being recorded (`recorded_attention`), it is `dot_product_attention`: the others have no probabilities.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from swin_jax.nn.attention import MultiHeadAttention, dot_product_attention, is_recording

PLATFORMS = {"xla": ("cpu", "gpu", "tpu"), "cudnn": ("gpu",), "pallas": ("gpu", "tpu")}
FASTEST: dict[str, str] = {}  # platform -> what "auto" means there, where it was measured to be faster than "xla"
HALF_PRECISION = ("bfloat16", "float16")
PALLAS_BLOCK = 64  # tokens

AttentionCore = Callable[..., Array]
"""What is called as `dot_product_attention` is."""


_CUDNN = partial(jax.nn.dot_product_attention, implementation="cudnn")


def choose_attention(
    attention: Any,
    name: str,
    *,
    default: Any,
    others: Mapping[str, Any],
    platforms: Mapping[str, tuple[str, ...]] = PLATFORMS,
    dtype: DTypeLike,
    head_dim: int,
    attention_dropout_rate: float,
) -> Any:
    """Return the factory `attention`, or of the `others` the one that computes by the implementation called `name`.

    "auto" is what was fastest on the platform at hand, of those that can do what is asked. Raises ValueError for a name
    that is unknown, not available on the platform, or cannot do it; `default` is what the `others` stand in for.
    """
    if name not in ("auto", *platforms):
        raise ValueError(f"attention_implementation={name!r} is none of 'auto', {', '.join(map(repr, platforms))}")
    platform = {"cuda": "gpu", "rocm": "gpu"}.get(jax.default_backend(), jax.default_backend())
    chosen = FASTEST.get(platform, "xla") if name == "auto" else name
    if chosen == "xla":
        return attention
    problem = None
    if platform not in platforms[chosen]:
        available = ", ".join(known for known, places in platforms.items() if platform in places)
        problem = f"is not available on {platform}, which has {available}"
    elif attention is not default:
        problem = f"is for {default.__name__}, not for {attention!r}"
    elif attention_dropout_rate:
        problem = f"has no dropout of probabilities, and {attention_dropout_rate=}"
    elif chosen == "cudnn" and jnp.dtype(dtype).name not in HALF_PRECISION:
        problem = f"needs dtype bfloat16 or float16, not {jnp.dtype(dtype)}"
    elif chosen == "cudnn" and (head_dim % 8 or head_dim > 128):
        problem = f"needs a head_dim that is a multiple of 8, up to 128, not {head_dim}"
    if problem and name != "auto":
        raise ValueError(f"attention_implementation={chosen!r} {problem}")
    return attention if problem else others[chosen]


def cudnn_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = None,
    mask: Array | np.ndarray | None = None,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
    attend: AttentionCore = _CUDNN,
) -> Array:
    """Compute `dot_product_attention` of `[B, N, heads, head_dim]` with cuDNN's flash attention.

    cuDNN masks by a bias, and with a bias trains on even lengths alone: tokens that no one sees fill them up.
    """
    if is_recording():
        return dot_product_attention(query, key, value, bias=bias, mask=mask, dropout_rate=dropout_rate, rngs=rngs)
    _check_no_dropout(dropout_rate, rngs)
    if bias is None and (mask is None or _is_causal(mask)):
        return attend(query, key, value, is_causal=mask is not None)
    num_queries, num_keys = query.shape[1], key.shape[1]
    mask = jnp.ones((1, 1, 1, 1), bool) if mask is None else mask
    mask = _score_axes(mask, num_queries, num_keys)
    query, key, value = (_pad_tokens(x, 8) for x in (query, key, value))
    padding = ((0, 0), (0, 0), (0, query.shape[1] - num_queries), (0, key.shape[1] - num_keys))
    if bias is not None:
        bias = jnp.pad(_score_axes(bias, num_queries, num_keys), padding).astype(query.dtype)
    out = attend(query, key, value, bias=bias, mask=jnp.pad(mask, padding))[:, :num_queries]
    sees_anything = mask.any(axis=-1).swapaxes(1, 2)[..., None]  # [B or 1, N, heads or 1, 1]
    return jnp.where(sees_anything, out, 0)  # cuDNN returns some mean of the values there


def cudnn_window_attention(
    query: Array, key: Array, value: Array, *, bias: Array, mask: np.ndarray | None = None, **options: Any
) -> Array:
    """Compute `dot_product_attention` of windows `[B*nW, M, heads, head_dim]`, or with a mask `[B, nW, M, ...]`.

    cuDNN returns the gradient of a bias `[heads, M, M]` only if the whole batch shares it. So windows that have the
    same mask, of which there are four kinds or so in a shifted map, are attended to together.
    """
    if is_recording():
        return dot_product_attention(query, key, value, bias=bias, mask=mask, **options)
    if mask is None:
        return cudnn_attention(query, key, value, bias=bias[None], **options)
    _, examples, kinds = np.unique(mask.reshape(len(mask), -1), axis=0, return_index=True, return_inverse=True)
    members = [np.flatnonzero(kinds.ravel() == kind) for kind in range(len(examples))]

    def attend(windows: np.ndarray, example: int) -> Array:
        parts = (x[:, windows].reshape(-1, *x.shape[2:]) for x in (query, key, value))
        out = cudnn_attention(*parts, bias=bias[None], mask=mask[None, example], **options)
        return out.reshape(-1, len(windows), *out.shape[1:])

    attended = [attend(windows, example) for windows, example in zip(members, examples, strict=True)]
    return jnp.concatenate(attended, axis=1)[:, np.argsort(np.concatenate(members))]


def pallas_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    bias: Array | None = None,
    mask: Array | np.ndarray | None = None,
    dropout_rate: float = 0.0,
    rngs: nnx.Rngs | None = None,
    interpret: bool = False,
) -> Array:
    """Compute `dot_product_attention` of `[B, N, heads, head_dim]` with the Pallas flash attention that JAX ships.

    Tokens that no one sees fill the sequence up to whole blocks. Raises ValueError for a bias, and for any mask but
    `causal_mask(N)`.
    """
    if is_recording():
        return dot_product_attention(query, key, value, bias=bias, mask=mask, dropout_rate=dropout_rate, rngs=rngs)
    _check_no_dropout(dropout_rate, rngs)
    if bias is not None or not (mask is None or _is_causal(mask)) or query.shape != key.shape:
        raise ValueError(
            "attention_implementation='pallas' takes no bias, no mask other than the causal one and no other number of "
            "queries than of keys: use 'cudnn' or 'xla'"
        )
    num_tokens, scale = query.shape[1], query.shape[-1] ** -0.5
    is_tpu = jax.default_backend() == "tpu" and not interpret
    query, key, value = (_pad_tokens(x, 128 if is_tpu else PALLAS_BLOCK) for x in (query, key, value))
    segments = jnp.broadcast_to((jnp.arange(query.shape[1]) < num_tokens).astype(jnp.int32), query.shape[:2])
    if is_tpu:
        from jax.experimental.pallas.ops.tpu import flash_attention as tpu

        query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
        segments = tpu.SegmentIds(segments, segments)
        out = tpu.flash_attention(query, key, value, None, segments, causal=mask is not None, sm_scale=scale)
        out = out.swapaxes(1, 2)
    else:
        from jax.experimental.pallas.ops.gpu import attention as gpu

        blocks = gpu.BlockSizes(*(PALLAS_BLOCK,) * 2, *(PALLAS_BLOCK // 2,) * 4)
        out = gpu.mha(query, key, value, segments, scale, mask is not None, block_sizes=blocks, interpret=interpret)
    return out[:, :num_tokens]


def _check_no_dropout(dropout_rate: float, rngs: nnx.Rngs | None) -> None:
    if dropout_rate and rngs is not None:
        raise ValueError(f"{dropout_rate=} of attention probabilities needs attention_implementation='xla'")


def _is_causal(mask: Array | np.ndarray) -> bool:
    """Return whether the mask is known, before anything runs, to be `causal_mask(N)`."""
    is_constant = isinstance(mask, np.ndarray) and mask.shape[:-2] == (1, 1) and mask.shape[-2] == mask.shape[-1]
    return is_constant and np.array_equal(mask[0, 0], np.tri(mask.shape[-1], dtype=bool))


def _score_axes(array: Array | np.ndarray, num_queries: int, num_keys: int) -> Array:
    """Return a mask or bias as `[B or 1, heads or 1, Q, K]`."""
    array = jnp.asarray(array).reshape((1,) * (4 - array.ndim) + array.shape)
    return jnp.broadcast_to(array, (*array.shape[:2], num_queries, num_keys))


def _pad_tokens(x: Array, multiple: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), (0, 0), (0, 0)))


MULTI_HEAD = {
    "cudnn": partial(MultiHeadAttention, core=cudnn_attention),
    "pallas": partial(MultiHeadAttention, core=pallas_attention),
}
"""What takes the place of `MultiHeadAttention` in `choose_attention`."""
