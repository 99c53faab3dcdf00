"""A plain ViT of ViT-22B's size (arXiv 2302.05442, table 1), to plan with: 48 layers, 6144 wide, 48 heads, MLP 24576.

Not measured, and not to be trained from here. ViT-22B runs attention and MLP side by side, normalises queries and keys
and leaves out some biases; this is the ViT of this repository, whose matrix products have the same sizes. The batch is
free: 65,536 in the paper.

python -m swin_jax.plan --config=configs/plan/vit_22b_like.py --chips=256 --config.mesh.fsdp=256
"""

from swin_jax.training.default_config import default_config


def get_config():
    config = default_config()
    config.batch_size = 4096
    config.model.name = "vit"
    config.model.patch_size = 14
    config.model.embed_dim = 6144
    config.model.depth = 48
    config.model.num_heads = 48
    config.model.mlp_ratio = 4.0
    config.model.pool = "map"
    config.model.dtype = "bfloat16"
    config.model.remat = True
    config.data.source = "synthetic"
    config.data.image_size = 224
    config.data.num_classes = 29593
    config.optimizer.name = "adamw"
    config.optimizer.momentum_dtype = "bfloat16"
    return config
