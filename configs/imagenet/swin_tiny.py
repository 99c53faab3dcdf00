"""Swin-T on ImageNet-1k, from scratch, 300 epochs at 224 (Swin, arXiv 2103.14030, section 4.1).

Published: 81.2 top-1 (timm's evaluation of the same weights: 81.388); 28,288,354 parameters, 4.5 GFLOP an image.
Not measured here. The official config: AdamW, learning rate 1e-3 at batch 1024 (base 5e-4 for 512), 20 epochs of
warm-up from 1e-6, cosine to 1e-5, weight decay 0.05, clipping at 5.0, drop path 0.2, label smoothing 0.1, RandAugment
rand-m9-mstd0.5-inc1, mixup 0.8, CutMix 1.0, random erasing 0.25 with noise. Its colour jitter 0.4 is without effect:
timm drops it beside RandAugment. Evaluation: shorter side to 256, centre crop 224, bicubic.

ImageNet is not redistributable: prepare it once with `tfds build imagenet2012 --file_format=array_record`, or point
`--config.data.source=folder:PATH` at train/ and val/ folders of JPEGs.

python train.py --config=configs/imagenet/swin_tiny.py --workdir=workdirs/imagenet_swin_tiny
"""

from swin_jax.training.default_config import default_config


def get_config():
    config = default_config()
    config.total_epochs = 300
    config.batch_size = 1024
    config.eval_every_epochs = 5

    config.model.name = "swin_tiny_patch4_window7_224"
    config.model.drop_path_rate = 0.2
    config.model.dtype = "bfloat16"

    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.crop = "random_resized"
    config.data.eval_crop = "center"
    config.data.crop_fraction = 0.875
    config.data.interpolation = "bicubic"
    config.data.decoder = "turbo"

    config.task.label_smoothing = 0.1
    config.task.mixup_alpha = 0.8
    config.task.cutmix_alpha = 1.0
    config.task.augment.flip = True
    config.task.augment.policy = "rand-m9-mstd0.5-inc1"
    config.task.augment.erasing = 0.25

    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_epochs = 20.0
    config.optimizer.warmup_learning_rate = 1e-6
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.weight_decay = 0.05
    config.optimizer.grad_clip_norm = 5.0
    return config
