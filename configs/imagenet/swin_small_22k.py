"""Swin-S on ImageNet-22k, 90 epochs at 224 (arXiv 2103.14030, section 4.1).

Target: no figure on 22k is published; 83.2 top-1 on ImageNet-1k after swin_small_22kto1k_finetune.py, within 0.3
points.
Not measured here.
The official file has a cosine and weight decay 0.05, the paper a linear decay and 0.01. Data: fall11_whole, 21,841
class folders of 14,197,122 images (the official split of them into train and val is a download of its own).
Cost: 8.76 G multiply-adds an image, 1277.7 M images: 6.7e19 FLOP (6 for each multiply-add).

python train.py --config=configs/imagenet/swin_small_22k.py --workdir=workdirs/imagenet_swin_small_22k
"""

from configs.imagenet import recipes


def get_config():
    return recipes.swin_pretrain_22k("swin_small_patch4_window7_224", drop_path_rate=0.2)
