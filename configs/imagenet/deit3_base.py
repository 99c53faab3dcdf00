"""DeiT-III B on ImageNet-1k, from scratch, 800 epochs at 192 (arXiv 2204.07118): the first of two runs.

Target: 82.8 top-1 at 192 (the published log's last epoch), 83.8 at 224 after deit3_base_224_finetune.py, within 0.3
points.
Not measured here.
Cost: 12.8 G multiply-adds an image, 1024.0 M images: 7.9e19 FLOP (6 for each multiply-add).

python train.py --config=configs/imagenet/deit3_base.py --workdir=workdirs/imagenet_deit3_base
"""

from configs.imagenet import recipes


def get_config():
    return recipes.deit3("deit3_base_patch16_224", image_size=192, drop_path_rate=0.2)
