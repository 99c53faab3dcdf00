"""What the configs of this folder share: the published training recipes, each in one function.

Sources, read in their own repositories: microsoft/Swin-Transformer (config.py, configs/swin), facebookresearch/deit
(main.py, README_deit.md, README_revenge.md), google-research/big_vision (configs/vit_s16_i1k.py) and
google-research/vision_transformer (configs/common.py, configs/augreg.py, train.py). Where such a file and its paper
disagree, the file is followed; docs/recipes.md lists where, and what is other here.
"""

from swin_jax.training.default_config import default_config

HALF = (0.5, 0.5, 0.5)


def swin_from_scratch(name, *, drop_path_rate):
    """300 epochs of AdamW on ImageNet-1k at 224 (Swin's config.py and the YAML file of each size)."""
    config = _swin(name, drop_path_rate=drop_path_rate)
    config.total_epochs = 300
    config.eval_every_epochs = 5
    _cosine(config, 1e-3, final=1e-5, warmup=1e-6, warmup_epochs=20)
    return config


def swin_pretrain_22k(name, *, drop_path_rate):
    """90 epochs on ImageNet-22k at batch 4096 (swin_*_22k.yaml).

    The data are class folders in imagenet22k/train and imagenet22k/val: `--config.data.source=folder:PATH` for others.
    """
    config = _swin(name, drop_path_rate=drop_path_rate)
    config.total_epochs = 90
    config.batch_size = 4096
    config.data.source = "folder:imagenet22k"
    _cosine(config, 1e-3, final=1e-5, warmup=1e-6, warmup_epochs=5)
    return config


def swin_fine_tune(name, *, image_size=224, drop_path_rate, init_from, class_map=""):
    """30 epochs on ImageNet-1k at a low rate and next to no decay (swin_*_finetune.yaml).

    At 384 images are evaluated whole, without a crop. Bias tables are resized bicubically where windows differ.
    """
    config = _swin(name, image_size=image_size, drop_path_rate=drop_path_rate)
    config.total_epochs = 30
    config.init_from = init_from
    config.init_resize = "bicubic"
    config.init_class_map = class_map
    if image_size == 384:
        config.data.eval_crop = "resize"
        config.model.remat = True
    _cosine(config, 4e-5, final=4e-7, warmup=4e-8, warmup_epochs=5)
    config.optimizer.weight_decay = 1e-8
    return config


def vit_plain(*, epochs):
    """The plain ViT-S/16 of arXiv 2205.01580: mean pooling, fixed positions, RandAugment(2, 10), mixup 0.2."""
    config = _imagenet("vit_small_patch16_224", image_size=224)
    config.total_epochs = epochs
    config.batch_size = 1024
    config.eval_every_epochs = 5
    _google(config)
    config.model.pool = "gap"
    config.model.pos_embed = "sincos2d"
    config.model.pre_logits = True
    config.task.mixup_alpha = 0.2
    config.task.augment.policy = "randaug(2,10)"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10_000
    config.optimizer.weight_decay = 1e-4
    config.optimizer.independent_weight_decay = True
    return config


def vit_augreg_fine_tune(name, *, checkpoint, learning_rate):
    """20,000 updates of SGD at 384 from an AugReg checkpoint of ImageNet-21k (arXiv 2106.10270), with a new head.

    `checkpoint` is the name of a file of gs://vit_models/augreg, read from the working folder.
    """
    config = _imagenet(name, image_size=384)
    config.total_steps = 20_000
    config.batch_size = 512
    config.init_from = f"{checkpoint}.npz"
    config.init_fresh_head = True
    config.init_resize = "bicubic"
    _google(config)
    config.data.eval_crop = "resize"
    config.optimizer.name = "sgd"
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = False
    config.optimizer.learning_rate = learning_rate
    config.optimizer.warmup_steps = 500
    config.optimizer.weight_decay = 0.0
    return config


def deit(name):
    """300 epochs of AdamW with repeated augmentation (arXiv 2012.12877; the defaults of DeiT's main.py)."""
    config = _imagenet(name, image_size=224)
    config.total_epochs = 300
    config.batch_size = 1024
    config.eval_every_epochs = 5
    config.ema_decay = 0.99996
    config.model.drop_path_rate = 0.1
    config.model.dtype = "bfloat16"
    config.data.repeats = 3
    _timm_augmentation(config, erasing=0.25)
    _cosine(config, 1e-3, final=1e-5, warmup=1e-6, warmup_epochs=5)
    return config


def deit3(name, *, image_size, drop_path_rate, learning_rate=3e-3):
    """800 epochs of LAMB on yes-or-no questions, three-augment (arXiv 2204.07118; commands of README_revenge.md)."""
    config = _deit3(name, image_size=image_size, drop_path_rate=drop_path_rate)
    config.total_epochs = 800
    config.batch_size = 2048
    config.eval_every_epochs = 5
    config.data.repeats = 3
    config.task.loss = "sigmoid"
    config.task.target_threshold = 0.0
    config.task.mixup_alpha = 0.8
    config.task.cutmix_alpha = 1.0
    config.task.augment.policy = "3a"
    config.task.augment.color_jitter = 0.3
    config.optimizer.name = "lamb"
    config.optimizer.grad_clip_norm = 1.0  # apex's FusedLAMB clips so unless told otherwise
    _cosine(config, learning_rate, final=1e-5, warmup=1e-6, warmup_epochs=5)
    return config


def deit3_fine_tune(name, *, drop_path_rate, init_from):
    """20 epochs of AdamW from a lower resolution to 224 (commands of README_revenge.md).

    Its rate after the warm-up is constant: 1e-5 is both the peak and the `--min-lr` that the command leaves as it is.
    """
    config = _deit3(name, image_size=224, drop_path_rate=drop_path_rate)
    config.total_epochs = 20
    config.batch_size = 512
    config.init_from = init_from
    config.init_resize = "bicubic"
    _timm_augmentation(config, erasing=0.0)
    _cosine(config, 1e-5, final=1e-5, warmup=1e-6, warmup_epochs=5)
    config.optimizer.weight_decay = 0.1
    return config


def _imagenet(name, *, image_size):
    config = default_config()
    config.model.name = name
    config.model.remat = "_large_" in name or "_huge_" in name
    config.data.source = "tfds:imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = image_size
    config.data.crop = "random_resized"
    config.data.eval_crop = "center"
    config.data.crop_fraction = 0.875
    config.data.interpolation = "bicubic"
    config.data.decoder = "turbo"
    config.task.augment.flip = True
    return config


def _swin(name, *, image_size=224, drop_path_rate):
    config = _imagenet(name, image_size=image_size)
    config.batch_size = 1024
    config.model.drop_path_rate = drop_path_rate
    config.model.dtype = "bfloat16"
    config.optimizer.grad_clip_norm = 5.0
    _timm_augmentation(config, erasing=0.25)
    return config


def _deit3(name, *, image_size, drop_path_rate):
    config = _imagenet(name, image_size=image_size)
    config.model.drop_path_rate = drop_path_rate
    config.model.drop_path_schedule = "constant"
    config.model.layer_scale_init = 1e-4
    config.model.dtype = "bfloat16"
    config.data.crop_fraction = 1.0
    return config


def _google(config):
    """Google's preprocessing, activation and clipping; the last hundredth of the training split is kept out."""
    config.data.train_split = "train[:99%]"
    config.data.crop_scale = (0.05, 1.0)
    config.data.interpolation = "bilinear"
    config.task.mean = HALF
    config.task.std = HALF
    config.model.activation = "gelu_tanh"
    config.optimizer.grad_clip_norm = 1.0
    config.optimizer.momentum_dtype = "bfloat16"


def _timm_augmentation(config, *, erasing):
    """RandAugment, mixup, CutMix and label smoothing as Swin and DeiT set them; their colour jitter has no effect."""
    config.task.label_smoothing = 0.1
    config.task.mixup_alpha = 0.8
    config.task.cutmix_alpha = 1.0
    config.task.augment.policy = "rand-m9-mstd0.5-inc1"
    config.task.augment.erasing = erasing


def _cosine(config, peak, *, final, warmup, warmup_epochs):
    """Rates as scaled to the global batch."""
    config.optimizer.learning_rate = peak
    config.optimizer.final_learning_rate = final
    config.optimizer.warmup_learning_rate = warmup
    config.optimizer.warmup_epochs = float(warmup_epochs)
