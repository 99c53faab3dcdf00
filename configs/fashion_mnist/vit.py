"""A small ViT (arXiv 2010.11929) on Fashion-MNIST's official 60,000/10,000 split, for 2 CPU cores.

Not measured yet: the settings are those of swin.py, 205,066 parameters.

Fetch the data first: make fashion-mnist
python train.py --config=configs/fashion_mnist/vit.py --workdir=workdirs/fashion_mnist_vit
"""

from swin_jax.training.default_config import default_config


def get_config():
    config = default_config()
    config.total_epochs = 14
    config.batch_size = 128
    config.eval_every_epochs = 7
    config.checkpoint_every_epochs = 7
    config.log_every_steps = 50

    config.model.name = "vit"
    config.model.patch_size = 4
    config.model.embed_dim = 64
    config.model.depth = 4
    config.model.num_heads = 2
    config.model.init = "fan_in"

    config.data.source = "fashion_mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.crop = "none"
    config.data.eval_crop = "none"

    config.task.label_smoothing = 0.1
    config.task.mean = (0.286,)
    config.task.std = (0.353,)
    config.task.augment.flip = True

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.05
    config.optimizer.grad_clip_norm = 5.0
    return config
