"""DeiT-III L on ImageNet-1k, from scratch, 800 epochs at 192 (arXiv 2204.07118): the first of two runs.

Target: 84.0 top-1 at 192 (the published log's last epoch), 84.9 at 224 after deit3_large_224_finetune.py, within 0.3
points.
Not measured here.
Cost: 44.9 G multiply-adds an image, 1024.0 M images: 2.8e20 FLOP (6 for each multiply-add).

python train.py --config=configs/imagenet/deit3_large.py --workdir=workdirs/imagenet_deit3_large
"""

from configs.imagenet import recipes


def get_config():
    return recipes.deit3("deit3_large_patch16_224", image_size=192, drop_path_rate=0.45)
