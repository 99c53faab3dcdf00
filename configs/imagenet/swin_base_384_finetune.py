"""Swin-B from 224 to 384, window 7 to 12, 30 epochs of fine-tuning on ImageNet-1k (arXiv 2103.14030, section 4.1).

Target: 84.5 top-1, 97.0 top-5 (timm's evaluation of the same weights: 84.478), within 0.2 points.
Not measured here.
The weights are timm's copy of the official ones; a file will do as well: the official .pth, or what `python -m
swin_jax.export` writes of a run of swin_base.py. The official file has a cosine from 4e-5 (as scaled), the paper a
constant 1e-5.
Cost: 47.1 G multiply-adds an image, 38.4 M images: 1.1e19 FLOP (6 for each multiply-add).

python train.py --config=configs/imagenet/swin_base_384_finetune.py --workdir=workdirs/imagenet_swin_base_384_finetune
"""

from configs.imagenet import recipes


def get_config():
    return recipes.swin_fine_tune(
        "swin_base_patch4_window12_384",
        image_size=384,
        drop_path_rate=0.5,
        init_from="hf:timm/swin_base_patch4_window7_224.ms_in1k",
    )
