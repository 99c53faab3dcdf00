"""Every config of configs/imagenet against the published numbers: model, rates, optimizer, loss, data, header.

The literals are of microsoft/Swin-Transformer (config.py, configs/swin/*.yaml, data/build.py), facebookresearch/deit
(main.py, README_deit.md, README_revenge.md, models_v2.py), google-research/big_vision (configs/vit_s16_i1k.py) and
google-research/vision_transformer (README.md, configs/common.py, train.py, input_pipeline.py), scaled to the batch.
"""

import ast
import functools
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from swin_jax.commands import load_config
from swin_jax.models import published
from swin_jax.nn.blocks import DropPath
from swin_jax.tasks.classification import Classification
from swin_jax.training import experiment, loop
from tests.recipe_costs import multiply_adds

FOLDER = Path(__file__).parents[1] / "configs" / "imagenet"
CONFIGS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "recipes"))
COUNT_1K, COUNT_22K = 1_281_167, 14_197_122  # image-net.org
COUNT_99 = 1_268_355  # train[:99%]

ADAM = dict(name="adamw", b1=0.9, b2=0.999, eps=1e-8)
SGD = dict(name="sgd", momentum=0.9, nesterov=False)
RANDAUGMENT = dict(policy="rand-m9-mstd0.5-inc1", flip=True, interpolation="bicubic")
TIMM_MIX = dict(mixup_alpha=0.8, cutmix_alpha=1.0, mix_prob=1.0, mix_switch_prob=0.5)
TIMM_DATA = dict(crop="random_resized", crop_scale=(0.08, 1.0), interpolation="bicubic", eval_crop="center", repeats=1)
GOOGLE_DATA = {**TIMM_DATA, "crop_scale": (0.05, 1.0), "interpolation": "bilinear", "train_split": "train[:99%]"}
SWIN_TASK = dict(**TIMM_MIX, loss="softmax", label_smoothing=0.1, augment=dict(**RANDAUGMENT, erasing=0.25))
NO_MIX = dict(cutmix_alpha=0.0, loss="softmax", label_smoothing=0.0)

# One kind of run: examples an epoch, batch, epochs (or updates), warm-up in updates, rates of the first update, the
# peak and the end, optimizer, decay, clipping (0: none), decay of the average, options of task and data.
SWIN_SCRATCH = dict(
    count=COUNT_1K, batch=1024, epochs=300, warmup=20 * 1251, rates=(1e-6, 1e-3, 1e-5), optimizer=ADAM, decay=0.05,
    clip=5.0, task=SWIN_TASK, data=dict(**TIMM_DATA, crop_fraction=0.875),
)  # fmt: skip
SWIN_22K = SWIN_SCRATCH | dict(count=COUNT_22K, batch=4096, epochs=90, warmup=5 * 3466)
SWIN_TUNE = SWIN_SCRATCH | dict(epochs=30, warmup=5 * 1251, rates=(4e-8, 4e-5, 4e-7), decay=1e-8)
SWIN_TUNE_384 = SWIN_TUNE | dict(data={**TIMM_DATA, "eval_crop": "resize"})
PLAIN = dict(
    count=COUNT_99, batch=1024, warmup=10_000, rates=(0.0, 1e-3, 0.0), optimizer=ADAM, decay=1e-4, independent=True,
    clip=1.0, task=dict(**NO_MIX, mixup_alpha=0.2, mix_prob=1.0, mean=(0.5,) * 3, std=(0.5,) * 3,
                        augment=dict(policy="randaug(2,10)", flip=True, interpolation="bicubic")),
    data=dict(**GOOGLE_DATA, crop_fraction=0.875), momentum_dtype="bfloat16",
)  # fmt: skip
AUGREG = dict(
    count=COUNT_99, batch=512, updates=20_000, warmup=500, rates=(0.0, 0.03, 0.0), optimizer=SGD, decay=0.0, clip=1.0,
    task=dict(**NO_MIX, mixup_alpha=0.0, mean=(0.5,) * 3, std=(0.5,) * 3,
              augment=dict(flip=True, interpolation="bicubic")),
    data={**GOOGLE_DATA, "eval_crop": "resize"}, momentum_dtype="bfloat16",
)  # fmt: skip
AUGREG_SLOW = AUGREG | dict(rates=(0.0, 0.01, 0.0))
DEIT = SWIN_SCRATCH | dict(warmup=5 * 1251, clip=0.0, ema=0.99996, data={**SWIN_SCRATCH["data"], "repeats": 3})
DEIT3 = dict(
    count=COUNT_1K, batch=2048, epochs=800, warmup=5 * 625, rates=(1e-6, 3e-3, 1e-5), optimizer=ADAM | {"name": "lamb"},
    decay=0.05, clip=1.0, task=dict(**TIMM_MIX, loss="sigmoid", target_threshold=0.0, label_smoothing=0.0,
                                    augment=dict(policy="3a", color_jitter=0.3, flip=True, interpolation="bicubic")),
    data={**TIMM_DATA, "repeats": 3, "crop_fraction": 1.0},
)  # fmt: skip
DEIT3_SMALL = DEIT3 | dict(rates=(1e-6, 4e-3, 1e-5))
DEIT3_TUNE = dict(
    count=COUNT_1K, batch=512, epochs=20, warmup=5 * 2502, rates=(1e-6, 1e-5, 1e-5), optimizer=ADAM, decay=0.1,
    clip=0.0, task=dict(**TIMM_MIX, loss="softmax", label_smoothing=0.1, augment=RANDAUGMENT),
    data=dict(**TIMM_DATA, crop_fraction=1.0),
)  # fmt: skip

# Config -> kind of run, classes, side, parameters, drop path of the first and of the last block.
PUBLISHED = {
    "swin_tiny": (SWIN_SCRATCH, 1000, 224, 28_288_354, 0.0, 0.2),
    "swin_small": (SWIN_SCRATCH, 1000, 224, 49_606_258, 0.0, 0.3),
    "swin_base": (SWIN_SCRATCH, 1000, 224, 87_768_224, 0.0, 0.5),
    "swin_base_384_finetune": (SWIN_TUNE_384, 1000, 384, 87_903_584, 0.0, 0.5),
    "swin_tiny_22k": (SWIN_22K, 21_841, 224, 28_288_354 + 20_841 * 769, 0.0, 0.1),
    "swin_small_22k": (SWIN_22K, 21_841, 224, 49_606_258 + 20_841 * 769, 0.0, 0.2),
    "swin_base_22k": (SWIN_22K, 21_841, 224, 87_768_224 + 20_841 * 1025, 0.0, 0.2),
    "swin_large_22k": (SWIN_22K, 21_841, 224, 196_532_476 + 20_841 * 1537, 0.0, 0.2),
    "swin_tiny_22kto1k_finetune": (SWIN_TUNE, 1000, 224, 28_288_354, 0.0, 0.1),
    "swin_small_22kto1k_finetune": (SWIN_TUNE, 1000, 224, 49_606_258, 0.0, 0.2),
    "swin_base_22kto1k_finetune": (SWIN_TUNE, 1000, 224, 87_768_224, 0.0, 0.2),
    "swin_large_22kto1k_finetune": (SWIN_TUNE, 1000, 224, 196_532_476, 0.0, 0.2),
    "swin_base_384_22kto1k_finetune": (SWIN_TUNE_384, 1000, 384, 87_903_584, 0.0, 0.2),
    "swin_large_384_22kto1k_finetune": (SWIN_TUNE_384, 1000, 384, 196_735_516, 0.0, 0.2),
    # Patch embedding, 12 blocks, norm, pre-logits layer, head; positions are fixed and there is no class token.
    **{
        f"vit_small_{epochs}ep": (
            PLAIN | {"epochs": epochs}, 1000, 224, 295_296 + 12 * 1_774_464 + 768 + 147_840 + 385_000, 0.0, 0.0
        )
        for epochs in (90, 150, 300)
    },
    "vit_large16_384_augreg_finetune": (AUGREG_SLOW, 1000, 384, 304_715_752, 0.0, 0.0),
    "vit_base16_384_augreg_finetune": (AUGREG, 1000, 384, 86_859_496, 0.0, 0.0),
    "vit_small16_384_augreg_finetune": (AUGREG, 1000, 384, 22_196_584, 0.0, 0.0),
    "vit_tiny16_384_augreg_finetune": (AUGREG, 1000, 384, 5_790_376, 0.0, 0.0),
    "vit_base32_384_augreg_finetune": (AUGREG_SLOW, 1000, 384, 88_297_192, 0.0, 0.0),
    "vit_small32_384_augreg_finetune": (AUGREG_SLOW, 1000, 384, 22_915_432, 0.0, 0.0),
    "deit_tiny": (DEIT, 1000, 224, 5_717_416, 0.0, 0.1),
    "deit_small": (DEIT, 1000, 224, 22_050_664, 0.0, 0.1),
    "deit_base": (DEIT, 1000, 224, 86_567_656, 0.0, 0.1),
    "deit3_small": (DEIT3_SMALL, 1000, 224, 22_059_496, 0.05, 0.05),
    "deit3_medium": (DEIT3, 1000, 224, 38_849_512, 0.1, 0.1),  # rate, resolution and drop path are ours
    "deit3_base": (DEIT3, 1000, 192, 86_585_320 - 52 * 768, 0.2, 0.2),  # 52 positions less
    "deit3_base_224_finetune": (DEIT3_TUNE, 1000, 224, 86_585_320, 0.2, 0.2),
    "deit3_large": (DEIT3, 1000, 192, 304_374_760 - 52 * 1024, 0.45, 0.45),
    "deit3_large_224_finetune": (DEIT3_TUNE, 1000, 224, 304_374_760, 0.45, 0.45),
    "deit3_huge": (DEIT3, 1000, 154, 632_126_440 - 135 * 1280, 0.6, 0.6),
    "deit3_huge_224_finetune": (DEIT3_TUNE, 1000, 224, 632_126_440, 0.55, 0.55),
}  # fmt: skip


def config_of(name, *overrides):
    return load_config(str(FOLDER / f"{name}.py"), overrides)


@functools.cache
def built(name):
    """Build a config's experiment on a data set that is not there, its model in shapes only."""
    kind, num_classes, *_ = PUBLISHED[name]
    config = config_of(name)
    inputs = SimpleNamespace(
        num_examples=kind["count"],
        model_options={"num_classes": num_classes, "image_size": config.data.image_size, "in_channels": 3},
        task_options={"num_classes": num_classes},
    )

    def shapes_only(build_model, **options):
        return nnx.eval_shape(build_model), None, None

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, "open_inputs", lambda config, **options: inputs)
        patched.setattr(experiment, "abstract_state", shapes_only)
        return config, experiment.build(config, mesh=None)


def test_there_is_a_recipe_for_every_published_row_and_no_other():
    assert set(CONFIGS) == set(PUBLISHED)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_is_the_published_one(name):
    _, _, image_size, num_parameters, first_rate, last_rate = PUBLISHED[name]
    config, run = built(name)
    model = run.target
    assert sum(param.size for param in jax.tree.leaves(nnx.state(model, nnx.Param))) == num_parameters
    assert config.data.image_size == image_size
    rates = [module.rate for _, module in nnx.iter_modules(model) if isinstance(module, DropPath)]
    assert rates
    assert (min(rates), max(rates)) == pytest.approx((first_rate, last_rate))
    if name.startswith("deit3"):
        assert set(rates) == {last_rate}
        assert config.model.layer_scale_init == 1e-4  # models_v2.py, init_scale
    assert config.model.get("activation", "gelu") == ("gelu_tanh" if name.startswith("vit_") else "gelu")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_schedule_is_the_published_one(name):
    kind = PUBLISHED[name][0]
    config, run = built(name)
    per_epoch = kind["count"] // kind["batch"]
    total = kind.get("updates") or kind["epochs"] * per_epoch
    start, peak, final = kind["rates"]
    assert (config.batch_size, run.steps_per_epoch, run.total_steps) == (kind["batch"], per_epoch, total)
    assert config.ema_decay == kind.get("ema", 0.0)
    warmup = kind["warmup"]
    steps = np.array([0, 1, warmup // 2, warmup, (warmup + total) // 2, total - warmup, total - 1])
    expected = [
        start + step / warmup * (peak - start)
        if step < warmup
        else final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        for step in steps
    ]
    np.testing.assert_allclose(run.schedule(steps), expected, rtol=2e-6, atol=1e-15)


def test_deits_rates_are_within_a_thirtieth_of_those_of_its_own_scheduler():
    """timm 0.3.2 as main.py calls it: a rate for each epoch, that of the epoch before, on a cosine from epoch 0 on."""
    _, run = built("deit_tiny")
    epochs = np.arange(run.total_steps) // 1251
    counted = np.maximum(epochs - 1, 0)
    cosine = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + np.cos(np.pi * counted / 300))
    theirs = np.where(counted < 5, 1e-6 + counted * (1e-3 - 1e-6) / 5, cosine)
    ours = np.asarray(jax.vmap(run.schedule)(np.arange(run.total_steps)))
    after = epochs > 5  # before, theirs takes steps of a fifth of the peak, an epoch late
    assert np.abs(ours - theirs)[after].max() < 1e-3 / 30
    assert np.abs(ours - theirs).max() < 2 * 1e-3 / 5


def different_optimizers():
    """The first config of each set of optimizer settings, the schedule apart."""
    first = {}
    for name in CONFIGS:
        kind = PUBLISHED[name][0]
        facts = {key: kind.get(key) for key in ("optimizer", "decay", "clip", "rates", "independent")}
        first.setdefault(repr(facts), name)
    return list(first.values())


def test_configs_of_one_kind_have_one_optimizer():
    """So that those below stand for all."""
    schedule_keys = ("warmup_epochs", "warmup_steps", "warmup_learning_rate", "final_learning_rate")
    options = {name: {**config_of(name).optimizer.to_dict()} for name in CONFIGS}
    found = {repr({k: v for k, v in one.items() if k not in schedule_keys}) for one in options.values()}
    taken = {
        repr({k: v for k, v in options[name].items() if k not in schedule_keys}) for name in different_optimizers()
    }
    assert found == taken


@pytest.mark.parametrize("name", different_optimizers())
def test_three_updates_are_the_published_optimizers(name):
    """In float64 by hand, at the peak rate, with gradients above and below what is clipped."""
    kind = PUBLISHED[name][0]
    peak = kind["rates"][1]
    options = config_of(name).optimizer.to_dict() | {
        "warmup_steps": 0,
        "warmup_epochs": 0.0,
        "final_learning_rate": peak,
    }
    _, optimizer = experiment.schedule_and_optimizer(options, steps_per_epoch=1, total_steps=10**9)
    rng = np.random.default_rng(0)
    params = {"head": {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=3)}}
    gradients = [jax.tree.map(lambda p, scale=scale: scale * rng.normal(size=p.shape), params) for scale in (9, 0.1, 2)]

    to_f32 = functools.partial(jax.tree.map, np.float32)
    update, state = jax.jit(optimizer.update), optimizer.init(to_f32(params))
    reference = by_hand(kind, params)
    for gradient in gradients:
        updates, state = update(to_f32(gradient), state, to_f32(params))
        expected = reference(gradient)
        rtol = 2e-2 if kind.get("momentum_dtype") else 2e-5  # first moments in bfloat16 have 8 bits
        for leaf in ("kernel", "bias"):
            norm = np.linalg.norm(expected["head"][leaf])
            np.testing.assert_allclose(updates["head"][leaf], expected["head"][leaf], rtol=0, atol=rtol * norm)
    momenta = {leaf.dtype.name for leaf in jax.tree.leaves(state) if leaf.ndim}
    assert ("bfloat16" in momenta) == ("momentum_dtype" in kind)


def by_hand(kind, params):
    """Return the function from a gradient to the next update: AdamW, LAMB or SGD as the papers and torch write them."""
    facts, peak = kind["optimizer"], kind["rates"][1]
    first = {name: np.zeros_like(value) for name, value in params["head"].items()}
    second = {name: np.zeros_like(value) for name, value in params["head"].items()}
    count = 0

    def update(gradient):
        nonlocal count
        count += 1
        norm = math.sqrt(sum((leaf**2).sum() for leaf in gradient["head"].values()))
        clipped = min(1.0, kind["clip"] / (norm + 1e-6)) if kind["clip"] else 1.0
        found = {}
        for name, value in params["head"].items():
            g = gradient["head"][name] * clipped
            if facts["name"] == "sgd":
                first[name] = facts["momentum"] * first[name] + g
                found[name] = -peak * first[name]
                continue
            first[name] = facts["b1"] * first[name] + (1 - facts["b1"]) * g
            second[name] = facts["b2"] * second[name] + (1 - facts["b2"]) * g**2
            mean, square = first[name] / (1 - facts["b1"] ** count), second[name] / (1 - facts["b2"] ** count)
            direction = mean / (np.sqrt(square) + facts["eps"])
            decays = value.ndim > 1
            share = kind["decay"] / peak if kind.get("independent") else kind["decay"]
            direction = direction + share * value * decays
            if facts["name"] == "lamb" and decays:
                direction = direction * np.linalg.norm(value) / np.linalg.norm(direction)
            found[name] = -peak * direction
        return {"head": found}

    return update


@pytest.mark.parametrize("name", CONFIGS)
def test_loss_and_augmentation_are_the_published_ones(name):
    kind = PUBLISHED[name][0]
    config, run = built(name)
    assert isinstance(run.task, Classification)  # which has accepted every option
    task, data = config.task.to_dict(), config.data.to_dict()
    augment = {key: value for key, value in task.pop("augment").items() if value}
    assert augment == kind["task"]["augment"]
    expected = {key: value for key, value in kind["task"].items() if key != "augment"}
    assert {key: task[key] for key in expected} == expected
    assert {key: data[key] for key in kind["data"]} == kind["data"]
    assert (data["flip"], data["policy"], data["color_jitter"]) == (False, "", 0.0)  # nothing twice
    mean = kind["task"].get("mean", (0.485, 0.456, 0.406))
    assert task["mean"] == mean


@pytest.mark.parametrize("name", CONFIGS)
def test_fine_tuning_starts_where_the_published_did(name):
    config = config_of(name)
    if not name.endswith("finetune"):
        assert (config.init_from, config.init_resize, config.init_class_map) == ("", "", "")
        return
    assert config.init_resize == "bicubic"
    assert config.init_fresh_head == name.startswith("vit_")
    assert (config.init_class_map == "map22kto1k.txt") == ("22kto1k" in name)
    preset = config.model.name
    if "22kto1k" in name:
        assert config.init_from == f"hf:timm/{preset}.ms_in22k"
    elif name.startswith("vit_"):
        letter, patch = {"large": "L", "base": "B", "small": "S", "tiny": "Ti"}[preset.split("_")[1]], name[:-20][-2:]
        assert config.init_from.startswith(f"{letter}_{patch}-i21k-300ep-lr_0.001-aug_")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_header_tells_paper_target_cost_and_command(name):
    kind, num_classes, image_size, *_ = PUBLISHED[name]
    source = (FOLDER / f"{name}.py").read_text()
    header = " ".join(ast.get_docstring(ast.parse(source)).split())
    assert len(source.splitlines()) <= 30  # what configs share is in recipes.py
    assert "Not measured here" in header
    assert re.search(r"arXiv 2\d{3}\.\d{5}", header)
    assert f"python train.py --config=configs/imagenet/{name}.py --workdir=workdirs/imagenet_{name}" in header
    config, run = built(name)
    target, tolerance = re.search(r"Target: (?:no figure.*?; )?([\d.]+) top-1.*within ([\d.]+) points", header).groups()
    assert 0 < float(tolerance) <= 0.5

    variants = {
        "swin": "ms_in22k_ft_in1k" if "22k" in name else "ms_in1k",
        "deit": "fb_in1k",
        "vit_": "augreg_in21k_ft_in1k",
    }
    own = name.startswith("deit3") and not name.endswith(("finetune", "small", "medium"))  # of 192 and 160
    if not name.endswith("ep") and not own:
        figures = published.targets(config.model.name, variants[name[:4]], "imagenet")
        assert float(target) == next(figure.accuracy for figure in figures if figure.source == "authors")

    macs, millions, flop = re.search(
        r"Cost: ([\d.]+) G multiply-adds an image, ([\d.]+) M images: ([\d.e]+) FLOP", header
    ).groups()
    options = config.model.to_dict()
    preset = options.pop("name")
    counted = multiply_adds(preset, image_size=image_size, num_classes=num_classes, **options)
    images = run.total_steps * config.batch_size
    assert float(macs) * 1e9 == pytest.approx(counted, rel=5e-3)
    assert float(millions) * 1e6 == pytest.approx(images, rel=5e-3)
    assert float(flop) == pytest.approx(6 * counted * images, rel=5e-2)
    row = next(line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}.py` |"))
    assert [cell.strip() for cell in row.split("|")][6:8] == [str(kind["batch"]), flop]


DOCUMENT = (FOLDER.parents[1] / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize(
    ("preset", "image_size", "giga"),
    [
        ("swin_tiny_patch4_window7_224", 224, 4.5),
        ("swin_base_patch4_window12_384", 384, 47.1),
        ("swin_large_patch4_window7_224", 224, 34.5),
        ("deit3_base_patch16_224", 224, 17.5),
        ("deit3_base_patch16_384", 384, 55.5),
        ("deit3_huge_patch14_224", 224, 167.4),
    ],
)
def test_the_count_of_multiply_adds_agrees_with_the_published_ones(preset, image_size, giga):
    """Those of the authors' READMEs, rounded as there."""
    assert multiply_adds(preset, image_size=image_size, num_classes=1000) == pytest.approx(giga * 1e9, rel=5e-3)


SHRUNK = (
    "data.source=synthetic",
    "data.eval_split=test[:16]",
    "data.num_classes=10",
    "data.preflight=0",
    "batch_size=16",
    "total_epochs=1",
    "model.dtype=float32",
)
SMALL_VIT = ("data.image_size=32", "model.depth=2", "model.embed_dim=16", "model.num_heads=2")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("swin_tiny", ("data.image_size=56", "model.depths=(2,)", "model.embed_dim=16", "model.num_heads=(2,)")),
        ("vit_small_90ep", SMALL_VIT),
        ("deit3_small", SMALL_VIT),
    ],
)
def test_a_shrunk_run_trains_from_end_to_end(name, model, tmp_path):
    split = "train[:32]" if name != "vit_small_90ep" else "train[:33]"
    config = config_of(name, *SHRUNK, *model, f"data.train_split={split}")
    result = loop.train(config, workdir=str(tmp_path))
    assert result["step"] == 2
    assert result["eval/count"] == 16
    assert np.isfinite(result["eval/loss"])
