"""A small Swin (arXiv 2103.14030) on Fashion-MNIST's official 60,000/10,000 split, for 2 CPU cores.

Measured, seed 0: 0.9192 after the last epoch, 1,564 s in all on 2 CPU cores (544 images/s); 533,622 parameters.
The size was chosen on a validation part of the training images; see docs/results.md.

Fetch the data first: make fashion-mnist
python train.py --config=configs/fashion_mnist/swin.py --workdir=workdirs/fashion_mnist_swin
"""

from swin_jax.training.default_config import default_config


def get_config():
    config = default_config()
    config.total_epochs = 14
    config.batch_size = 128
    config.eval_every_epochs = 7
    config.checkpoint_every_epochs = 7
    config.log_every_steps = 50

    config.model.name = "swin"
    config.model.patch_size = 4
    config.model.embed_dim = 64
    config.model.depths = (2, 2)
    config.model.num_heads = (2, 4)
    config.model.window_size = 7
    config.model.drop_path_rate = 0.0
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
