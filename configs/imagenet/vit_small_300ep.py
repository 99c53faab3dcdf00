"""Plain ViT-S/16 on ImageNet-1k, from scratch, 300 epochs at 224 (arXiv 2205.01580).

Target: 80.0 top-1 (the paper's abstract, as "80%"), within 0.3 points.
Not measured here.
Cost: 4.57 G multiply-adds an image, 380.3 M images: 1.0e19 FLOP (6 for each multiply-add); 6 to 7 hours on a TPU v3-8
for 90 epochs (big_vision).

python train.py --config=configs/imagenet/vit_small_300ep.py --workdir=workdirs/imagenet_vit_small_300ep
"""

from configs.imagenet import recipes


def get_config():
    return recipes.vit_plain(epochs=300)
