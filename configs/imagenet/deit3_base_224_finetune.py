"""DeiT-III B from 192 to 224, 20 epochs of fine-tuning on ImageNet-1k (arXiv 2204.07118).

Target: 83.8 top-1 (timm's evaluation of the same weights: 83.800), within 0.3 points, deit3_base.py included.
Not measured here.
Cost: 17.6 G multiply-adds an image, 25.6 M images: 2.7e18 FLOP (6 for each multiply-add).

python -m swin_jax.export --workdir=workdirs/imagenet_deit3_base --out=deit3_base.safetensors
python train.py --config=configs/imagenet/deit3_base_224_finetune.py --workdir=workdirs/imagenet_deit3_base_224_finetune
"""

from configs.imagenet import recipes


def get_config():
    return recipes.deit3_fine_tune("deit3_base_patch16_224", drop_path_rate=0.2, init_from="deit3_base.safetensors")
