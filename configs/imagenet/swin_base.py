"""Swin-B on ImageNet-1k, from scratch, 300 epochs at 224 (arXiv 2103.14030, section 4.1).

Target: 83.5 top-1, 96.5 top-5 (timm's evaluation of the same weights: 83.604), within 0.3 points.
Not measured here.
ImageNet is not redistributable: prepare it once with `tfds build imagenet2012 --file_format=array_record`, or point
`--config.data.source=folder:PATH` at train/ and val/ folders of JPEGs.
Cost: 15.4 G multiply-adds an image, 384.3 M images: 3.6e19 FLOP (6 for each multiply-add).

python train.py --config=configs/imagenet/swin_base.py --workdir=workdirs/imagenet_swin_base
"""

from configs.imagenet import recipes


def get_config():
    return recipes.swin_from_scratch("swin_base_patch4_window7_224", drop_path_rate=0.5)
