"""DeiT-III S on ImageNet-1k, from scratch, 800 epochs at 224 (arXiv 2204.07118).

Target: 81.4 top-1 (timm's evaluation of the same weights: 81.382), within 0.3 points.
Not measured here.
Cost: 4.60 G multiply-adds an image, 1024.0 M images: 2.8e19 FLOP (6 for each multiply-add).

python train.py --config=configs/imagenet/deit3_small.py --workdir=workdirs/imagenet_deit3_small
"""

from configs.imagenet import recipes


def get_config():
    return recipes.deit3("deit3_small_patch16_224", image_size=224, drop_path_rate=0.05, learning_rate=4e-3)
