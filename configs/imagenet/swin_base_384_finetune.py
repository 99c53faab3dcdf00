"""Swin-B from 224 to 384, window 7 to 12, 30 epochs of fine-tuning on ImageNet-1k (arXiv 2103.14030, section 4.1).

Published: 84.5 top-1, 97.0 top-5 (timm's evaluation of the same weights: 84.478, 96.886); 47.1 GFLOP an image.
Not measured here. The official config: AdamW, learning rate 4e-5 at batch 1024 (base 2e-5 for 512), 5 epochs of warm-up
from 4e-8, cosine to 4e-7, weight decay 1e-8, clipping at 5.0, drop path 0.5, label smoothing 0.1, RandAugment
rand-m9-mstd0.5-inc1, mixup 0.8, CutMix 1.0, random erasing 0.25 with noise. Its colour jitter 0.4 is without effect:
timm drops it beside RandAugment. Evaluation: resized straight to 384, bicubic. The relative position bias tables are
resized bicubically, as the official code does; the head is kept.

The weights are timm's copy of the official ones; a file will do as well: the official .pth, or what
`python -m swin_jax.export` writes of a run of your own. From a 22k checkpoint, set `init_class_map` to the official
`data/map22kto1k.txt` for its head, or `init_fresh_head` to True.

python train.py --config=configs/imagenet/swin_base_384_finetune.py --workdir=workdirs/imagenet_swin_base_384
"""

from swin_jax.training.default_config import default_config


def get_config():
    config = default_config()
    config.total_epochs = 30
    config.batch_size = 1024
    config.init_from = "hf:timm/swin_base_patch4_window7_224.ms_in1k"
    config.init_resize = "bicubic"

    config.model.name = "swin_base_patch4_window12_384"
    config.model.drop_path_rate = 0.5
    config.model.dtype = "bfloat16"
    config.model.remat = True

    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 384
    config.data.crop = "random_resized"
    config.data.eval_crop = "resize"
    config.data.interpolation = "bicubic"
    config.data.decoder = "turbo"

    config.task.label_smoothing = 0.1
    config.task.mixup_alpha = 0.8
    config.task.cutmix_alpha = 1.0
    config.task.augment.flip = True
    config.task.augment.policy = "rand-m9-mstd0.5-inc1"
    config.task.augment.erasing = 0.25

    config.optimizer.learning_rate = 4e-5
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.warmup_learning_rate = 4e-8
    config.optimizer.final_learning_rate = 4e-7
    config.optimizer.weight_decay = 1e-8
    config.optimizer.grad_clip_norm = 5.0
    return config
