"""The layer on the fused kernel: window attention of a whole map, with the parameters of `WindowAttention`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from swin_jax.kernels.window_attention import window_attention
from swin_jax.kernels.window_layout import WindowLayout
from swin_jax.nn.windows import WindowAttention


class FusedWindowAttention(WindowAttention):
    """`WindowAttention` that leaves shift, partition and merge to the kernel; checkpoints fit both.

    Its own `__call__`, on windows, stays in plain JAX; `attend_map` is what `shifted_window_attention` calls.
    `interpret`: see `window_attention`. Raises ValueError for dropout of the probabilities.
    """

    def __init__(self, *args: Any, dropout_rate: float = 0.0, interpret: bool = False, **options: Any):
        if dropout_rate:
            raise ValueError(f"attention {dropout_rate=} needs attention_implementation='xla'")
        super().__init__(*args, dropout_rate=dropout_rate, **options)
        self.interpret = interpret

    def attend_map(
        self, x: Array, *, window_size: tuple[int, int], shift: tuple[int, int], window_padding: str
    ) -> Array:
        """Map `[B, H, W, C]` to `[B, H, W, C]`; arguments as `shifted_window_attention` works them out."""
        layout = WindowLayout(
            map_size=x.shape[1:3],
            window_size=window_size,
            shift=shift,
            roll_first=window_padding == "roll_pad",
            attend_padding=window_padding != "masked",
        )
        (height, width), (padded_height, padded_width) = layout.map_size, layout.padded_size
        padding = ((0, 0), (0, padded_height - height), (0, padded_width - width), (0, 0))
        qkv = self.qkv(jnp.pad(x, padding) if layout.padded_size != layout.map_size else x)
        bias = self.relative_position_bias(window_size)
        attended = attend_on_mesh(qkv, bias, layout, interpret=self.interpret)
        return self.proj(attended[:, :height, :width].reshape(x.shape))


def attend_on_mesh(qkv: Array, bias: Array, layout: WindowLayout, *, interpret: bool = False) -> Array:
    """Call `window_attention` on each device's part of the batch and of the heads.

    XLA cannot look into a kernel and would gather its inputs on every device. The mesh is that of `jax.set_mesh`, its
    axis `tensor` cuts the heads and the others the batch; where they do not divide, XLA does gather.
    """
    attend = functools.partial(window_attention, layout=layout, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    batch_axes = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    head_axis = "tensor" if "tensor" in mesh.axis_names else None
    batch_shards = functools.reduce(lambda total, axis: total * mesh.shape[axis], batch_axes, 1)
    head_shards = mesh.shape[head_axis] if head_axis else 1
    if batch_shards * head_shards == 1 or qkv.shape[0] % batch_shards or qkv.shape[4] % head_shards:
        return attend(qkv, bias)
    maps = PartitionSpec(batch_axes, None, None, None, head_axis)
    return jax.shard_map(
        attend,
        in_specs=(maps, PartitionSpec(head_axis)),
        out_specs=PartitionSpec(batch_axes, None, None, head_axis),
        check_vma=False,  # a kernel's outputs do not say over which axes they vary
    )(qkv, bias)
