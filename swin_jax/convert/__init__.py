"""Published weights in and out."""

from swin_jax.convert.export import hf_state_dict, published_state_dict, save_hf, save_timm, timm_state_dict
from swin_jax.convert.load import LoadReport, load_pretrained
from swin_jax.convert.misfit import LoadError
from swin_jax.convert.readers import read_checkpoint
from swin_jax.convert.resize import resize_bias_table, resize_parameters, resize_positions

__all__ = [
    "LoadError",
    "LoadReport",
    "hf_state_dict",
    "load_pretrained",
    "published_state_dict",
    "read_checkpoint",
    "resize_bias_table",
    "resize_parameters",
    "resize_positions",
    "save_hf",
    "save_timm",
    "timm_state_dict",
]
