"""Plain ViT-S/16 on ImageNet-1k, from scratch, 150 epochs at 224 (arXiv 2205.01580).

Target: 78.5 top-1 (the paper, quoted from memory), within 0.3 points.
Not measured here.
Cost: 4.57 G multiply-adds an image, 190.2 M images: 5.2e18 FLOP (6 for each multiply-add); 6 to 7 hours on a TPU v3-8
for 90 epochs (big_vision).

python train.py --config=configs/imagenet/vit_small_150ep.py --workdir=workdirs/imagenet_vit_small_150ep
"""

from configs.imagenet import recipes


def get_config():
    return recipes.vit_plain(epochs=150)
