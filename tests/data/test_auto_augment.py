"""Policies: what is drawn, how often and how strong, on the device and on the host, and on any number of devices."""

import dataclasses
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import random
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image

from swin_jax.data import augment, auto_augment, host_augment
from swin_jax.data.policies import BIG_VISION_OPS, FUNCTIONS, OPS, Policy, Step, parse_policy
from swin_jax.errors import UserError

# These programs run once on small images, so compiling is what they cost.
COMPILE_FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SWIN, BIG_VISION = "rand-m9-mstd0.5-inc1", "randaug(2,10)"
NUM_IMAGES, SIZE = 6000, (224, 160)
KEY = random.key(7)


@functools.cache
def draws(text):
    """Functions [N, S] by name and arguments [N, S] of a policy's draws."""
    policy = parse_policy(text)
    draw = jax.jit(
        lambda key: auto_augment.draw_policy(key, policy, (NUM_IMAGES, *SIZE)), compiler_options=COMPILE_FAST
    )
    drawn = draw(KEY)
    return np.array(FUNCTIONS)[drawn.function], np.asarray(drawn.argument, np.float64)


def assert_frequencies(names, expected):
    """Each name's count is within 4.5 standard deviations of its binomial, and nothing else occurs."""
    values, counts = np.unique(names, return_counts=True)
    assert set(values) <= set(expected)
    counts = dict(zip(values, counts, strict=True))
    for name, probability in expected.items():
        deviation = math.sqrt(len(names) * probability * (1 - probability))
        assert abs(counts.get(name, 0) - len(names) * probability) <= 4.5 * deviation, name


def pairs(functions):
    return np.char.add(np.char.add(functions[:, 0], "+"), functions[:, 1])


RAND_FUNCTIONS = {step[0].op.function for step in parse_policy(SWIN).chains}


def test_randaugment_draws_two_of_fifteen_independently_each_acting_half_of_the_time():
    functions, _ = draws(SWIN)
    assert len(RAND_FUNCTIONS) == 15
    expected = dict.fromkeys(RAND_FUNCTIONS, 0.5 / 15) | {"identity": 0.5}
    for step in (0, 1):
        assert_frequencies(functions[:, step], expected)
    assert_frequencies(
        pairs(functions), {f"{a}+{b}": expected[a] * expected[b] for a, b in itertools.product(expected, expected)}
    )


def arguments_of(text, name):
    functions, arguments = draws(text)
    return arguments[functions == name]


def test_levels_are_normal_about_the_magnitude_and_cut_at_ten():
    """Of the signed operations, whose argument is proportional to the level."""
    units = {"rotate": 3.0, "shear_x": 0.03, "shear_y": 0.03, "translate_x": 0.045 * 160, "translate_y": 0.045 * 224}
    levels, signs = [], []
    for name, unit in units.items():
        signed = arguments_of(SWIN, name) / unit
        assert abs(np.mean(signed > 0) - 0.5) < 4.5 * math.sqrt(0.25 / len(signed))
        levels.append(np.abs(signed))
        signs.append(np.sign(signed))
    for name in ("brightness", "contrast", "color", "sharpness"):
        factors = arguments_of(SWIN, name)
        levels.append(np.abs(factors - 1)[factors > 1] / 0.09)
        assert factors.min() == pytest.approx(0.1)  # 1 - 0.9 at level 10
    levels = np.concatenate(levels)
    is_cut = levels > 10 - 1e-4
    assert levels.max() < 10 + 1e-4
    assert abs(is_cut.mean() - scipy.stats.norm.sf(2)) < 4.5 * math.sqrt(0.0228 * 0.9772 / len(levels))
    below = scipy.stats.truncnorm(-math.inf, 2, loc=9, scale=0.5)
    assert scipy.stats.kstest(levels[~is_cut], below.cdf).pvalue > 1e-3


def test_whole_arguments_follow_the_level():
    bits = arguments_of(SWIN, "posterize")  # 4 - floor(level * 0.4): 1 from level 7.5 up, 0 at 10, of which 2.3%
    assert set(bits) <= {0, 1, 2}
    assert np.mean(bits == 1) > 0.9
    thresholds, added = arguments_of(SWIN, "solarize"), arguments_of(SWIN, "solarize_add")
    assert thresholds.min() == 0
    assert abs(np.median(thresholds) - (256 - 230)) <= 3
    assert abs(np.median(added) - 99) <= 2
    assert added.max() == 110
    assert np.all(thresholds % 1 == 0)
    assert np.all(added % 1 == 0)


def test_big_visions_operations_always_act_at_the_given_level():
    functions, arguments = draws(BIG_VISION)
    names = {chain[0].op.function for chain in parse_policy(BIG_VISION).chains}
    assert len(names) == 16
    for step in (0, 1):
        assert_frequencies(functions[:, step], dict.fromkeys(names, 1 / 16))
    assert {"contrast_by_size", "cutout"} <= names
    np.testing.assert_allclose(np.abs(arguments[functions == "translate_x"]), 100, rtol=1e-6)
    np.testing.assert_allclose(arguments[functions == "color"], 1.9, rtol=1e-6)


@pytest.mark.parametrize("text", ["original", "v0"])
def test_autoaugment_draws_whole_sub_policies(text):
    chains = parse_policy(text).chains
    assert len(chains) == 25
    expected = {}
    for chain in chains:
        outcomes = [((step.op.function, step.probability), ("identity", 1 - step.probability)) for step in chain]
        for (first, p), (second, q) in itertools.product(*outcomes):
            if p * q:
                expected[f"{first}+{second}"] = expected.get(f"{first}+{second}", 0) + p * q / 25
    assert_frequencies(pairs(draws(text)[0]), expected)


def test_three_augment_draws_one_of_three_and_a_uniform_radius():
    functions, arguments = draws("3a")
    assert functions.shape == (NUM_IMAGES, 1)
    assert_frequencies(functions[:, 0], dict.fromkeys(("solarize", "color", "gaussian_blur"), 1 / 3))
    assert set(arguments[functions == "solarize"]) == {128}
    assert set(arguments[functions == "color"]) == {0}
    radius = arguments[functions == "gaussian_blur"]
    assert scipy.stats.kstest(radius, scipy.stats.uniform(0.1, 1.9).cdf).pvalue > 1e-3


def test_noise_above_100_is_uniform_and_other_sections_count():
    text = "rand-m6-n3-p1-mstd101"
    functions, _ = draws(text)
    assert functions.shape == (NUM_IMAGES, 3)
    assert not np.any(functions == "identity")
    levels = np.abs(arguments_of(text, "rotate")) / 3
    assert scipy.stats.kstest(levels, scipy.stats.uniform(0, 6).cdf).pvalue > 1e-3
    assert parse_policy("rand-m15-mmax20").max_level == 20
    assert parse_policy("original-mstd0.5").magnitude_std == 0.5


@pytest.mark.parametrize("text", [SWIN, BIG_VISION, "v0", "3a", "rand-m6-n3-p1-mstd101"])
def test_the_host_draws_from_the_same_distribution(text):
    functions, arguments = draws(text)
    rng = np.random.default_rng(0)
    on_host = [draw for _ in range(4000) for draw in host_augment.draw_policy(parse_policy(text), rng, SIZE)]
    host_functions = np.array([name for name, _, _ in on_host])
    acting = functions[functions != "identity"]
    assert len(host_functions) / 4000 == pytest.approx(len(acting) / NUM_IMAGES, abs=0.05)
    for name in set(acting) | set(host_functions):
        share, count = np.mean(acting == name), np.sum(host_functions == name)
        assert abs(count / len(host_functions) - share) < 4.5 * math.sqrt(2 * share / len(host_functions)), name
        host_arguments = np.array([argument for function, argument, _ in on_host if function == name])
        rounded = [np.round(values, 4) for values in (host_arguments, arguments[functions == name])]
        assert scipy.stats.ks_2samp(*rounded).pvalue > 1e-3, name


def test_color_jitter_takes_every_order_and_uniform_factors():
    draw = functools.partial(auto_augment.draw_jitter, batch=NUM_IMAGES, strength=0.4)
    drawn = jax.jit(draw, compiler_options=COMPILE_FAST)(KEY)
    orders = ["+".join(names) for names in np.array(FUNCTIONS)[drawn.function]]
    assert_frequencies(
        np.array(orders),
        {"+".join(names): 1 / 6 for names in itertools.permutations(["brightness", "contrast", "color"])},
    )
    for step in range(3):
        assert scipy.stats.kstest(drawn.argument[:, step], scipy.stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    strong = auto_augment.draw_jitter(KEY, 1000, strength=1.5)
    assert strong.argument.min() >= 0
    assert strong.argument.max() > 2.4


def noise(batch, size=(32, 24), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, *size, 3), np.uint8)


def test_color_jitter_on_the_host_and_on_the_device_have_the_same_moments():
    """Over many draws on one image: the mean and the spread of each pixel's change."""
    image = noise(1, (6, 6))[0] // 2 + 60
    images = jnp.broadcast_to(image, (800, 6, 6, 3))
    jitter = functools.partial(auto_augment.jitter_colors, strength=0.4)
    on_device = np.asarray(jax.jit(jitter, compiler_options=COMPILE_FAST)(KEY, images))
    rng = np.random.default_rng(1)
    on_host = [host_augment.jitter_colors(Image.fromarray(image), rng, strength=0.4) for _ in range(800)]
    on_host = np.stack([np.asarray(pil) for pil in on_host])
    spread = on_host.std(0)
    assert np.all(np.abs(on_device.mean(0) - on_host.mean(0)) < 4.5 * spread * math.sqrt(2 / 800))
    np.testing.assert_allclose(on_device.std(0), spread, rtol=0.2)


@functools.cache
def program(options):
    run = functools.partial(augment.augment, std=1 / 255, **dict(options))
    return jax.jit(run, compiler_options=COMPILE_FAST)


def run_augment(images, key=KEY, **options):
    """The grey levels that `augment` gives."""
    return np.round(program(tuple(options.items()))(key, images))


def test_a_policy_is_a_function_of_key_and_position_and_comes_after_the_flip():
    images = jnp.stack([noise(1)[0]] * 16)
    one, two, other = (run_augment(images, key, policy=SWIN, flip=True) for key in (KEY, KEY, random.key(1)))
    np.testing.assert_array_equal(one, two)
    assert np.any(one != other)
    assert len({image.tobytes() for image in one}) > 8
    flipped = augment.random_flip(random.split(KEY, 4)[2], images)
    assert 0 < np.any(np.asarray(flipped != images), axis=(1, 2, 3)).sum() < 16
    np.testing.assert_array_equal(one, run_augment(flipped, policy=SWIN))
    prefix = auto_augment.draw_policy(KEY, parse_policy(SWIN), (3, *SIZE))
    np.testing.assert_array_equal(np.array(FUNCTIONS)[prefix.function], draws(SWIN)[0][:3])


def test_color_jitter_acts_alone_and_beside_three_augment_only():
    images = jnp.asarray(noise(6))
    assert np.any(run_augment(images, color_jitter=0.4) != images)
    with_three = [run_augment(images, policy="3a", color_jitter=x) for x in (0.0, 0.4)]
    assert np.all(np.any(with_three[0] != with_three[1], axis=(1, 2, 3)))
    programs = [
        str(jax.make_jaxpr(functools.partial(augment.augment, policy=SWIN, color_jitter=strength))(KEY, images))
        for strength in (0.0, 0.4)
    ]
    pointers = re.compile(r"0x[0-9a-f]+")
    assert pointers.sub("", programs[0]) == pointers.sub("", programs[1])


def test_what_comes_in_from_outside_is_the_mean_colour_or_big_visions_grey(monkeypatch):
    calls = []

    def keep_arguments(key, images, policy, **options):
        calls.append(options)
        return images

    monkeypatch.setattr(augment, "apply_policy", keep_arguments)
    augment.augment(KEY, noise(2), policy=SWIN, mean=(0.5, 0.25, 0.751), interpolation="random")
    assert calls == [{"fill": (128, 64, 192), "interpolation": "random"}]
    white = jnp.full((20, 16, 16, 3), 255, jnp.uint8)
    for text, fill in (("rand-m10-n1-p1", (128, 64, 192)), ("randaug(1,10)", (128, 128, 128))):
        chains = tuple(chain for chain in parse_policy(text).chains if chain[0].op.function == "translate_x")
        policy = dataclasses.replace(parse_policy(text), chains=chains)
        for image in np.asarray(auto_augment.apply_policy(KEY, white, policy, fill=(128, 64, 192))):
            assert {tuple(color) for color in image.reshape(-1, 3)} <= {(255, 255, 255), fill}
            assert tuple(image[0, 0]) == fill or tuple(image[0, -1]) == fill


def test_a_policy_works_on_greyscale_and_needs_uint8():
    images = jnp.asarray(noise(4)[..., :1])
    out = run_augment(images, policy=SWIN)
    assert out.shape == images.shape
    assert np.any(out != np.asarray(images))
    with pytest.raises(ValueError, match="uint8"):
        augment.augment(KEY, jnp.zeros((2, 8, 8, 3)), policy=SWIN)


@pytest.fixture(scope="module")
def eight_devices():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    return NamedSharding(Mesh(np.array(jax.devices()[:8]), ("data",)), PartitionSpec("data"))


def test_accelerators_need_no_communication(eight_devices):
    """One step of a policy that has all functions."""
    steps = [Step(op, 1.0, 5.0) for op in {**OPS, **BIG_VISION_OPS}.values()]
    policy, images = Policy(tuple((step,) for step in steps)), noise(8, (16, 12))
    assert set().union(*policy.functions) == set(FUNCTIONS) - {"identity"}

    def run(key, images):
        operations = auto_augment.draw_policy(key, policy, images.shape[:3])
        options = {"fill": (128,) * 3, "interpolation": "random"}
        return auto_augment.apply_together(images, operations, names=policy.functions, **options)

    shardings = {"in_shardings": (None, eight_devices), "out_shardings": eight_devices}
    compiled = jax.jit(run, **shardings).lower(KEY, images).compile(COMPILE_FAST)
    collectives = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    assert not re.findall(collectives, compiled.as_text())
    cut = np.asarray(compiled(KEY, jax.device_put(images, eight_devices))).astype(int)
    difference = np.abs(cut - jax.jit(run, compiler_options=COMPILE_FAST)(KEY, images))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m9-msdt0.5", "unknown section 'msdt0.5'.*did you mean 'mstd'"),
        ("rand-m9-tweights", "unknown section 'tweights'"),
        ("rand-m9-p1.5", "p from 0 to 1"),
        ("rand-m11", "m=11 is above mmax=10"),
        ("rand-n0", "n of at least 1"),
        ("rand-n1.5", "whole n"),
        ("randaug(2,30)", "at most 20"),
        ("randaug(0,10)", "at least 1"),
        ("orginal", "unknown policy 'orginal'.*did you mean 'original'"),
        ("original-m9", "unknown section 'm9'"),
        ("ranaug(2,10)", r"did you mean 'randaug\(2,10\)'"),
    ],
)
def test_policies_that_do_not_exist(text, message):
    with pytest.raises(UserError, match=message):
        augment.augment(KEY, jnp.zeros((2, 8, 8, 3), jnp.uint8), policy=text)
