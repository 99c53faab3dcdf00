"""DeiT-III H from 154 to 224, 20 epochs of fine-tuning on ImageNet-1k (arXiv 2204.07118).

Target: 85.2 top-1 (timm's evaluation of the same weights: 85.204), within 0.3 points, deit3_huge.py included.
Not measured here.
Cost: 167.3 G multiply-adds an image, 25.6 M images: 2.6e19 FLOP (6 for each multiply-add).

python -m swin_jax.export --workdir=workdirs/imagenet_deit3_huge --out=deit3_huge.safetensors
python train.py --config=configs/imagenet/deit3_huge_224_finetune.py --workdir=workdirs/imagenet_deit3_huge_224_finetune
"""

from configs.imagenet import recipes


def get_config():
    return recipes.deit3_fine_tune("deit3_huge_patch14_224", drop_path_rate=0.55, init_from="deit3_huge.safetensors")
