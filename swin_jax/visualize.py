"""Draw masks and attention as PNG files:

python -m swin_jax.visualize masks --kind=causal|padding|prefix|packed|cross|shifted_window [--length=8 ...] --out=FILE
python -m swin_jax.visualize attention --workdir=DIR [--checkpoint=best] [--image=FILE] [--out=DIR]
python -m swin_jax.visualize attention --model=NAME --pretrained=FILE|hf:ORG/NAME --image=FILE [--out=DIR]

A run on images needs no --image: the first one of its evaluation split is taken. docs/seeing.md tells what is drawn.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from swin_jax.commands import config_from_json, run_subcommand, whole_numbers
from swin_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from swin_jax.data.transforms import ImageTransform

MASK_FLAGS = flags.FlagValues()
flags.DEFINE_string("kind", None, "Which mask; see above.", flag_values=MASK_FLAGS)
flags.DEFINE_string("out", None, "The PNG file; by default KIND.png.", flag_values=MASK_FLAGS)
flags.DEFINE_integer("length", None, "Tokens: causal, padding, prefix.", flag_values=MASK_FLAGS)
flags.DEFINE_integer("keys", None, "Keys, if more than queries (a cache): causal.", flag_values=MASK_FLAGS)
flags.DEFINE_list("lengths", None, "Real tokens of each sequence: padding.", flag_values=MASK_FLAGS)
flags.DEFINE_list("prefix", None, "Length of the prefix, or several: prefix.", flag_values=MASK_FLAGS)
flags.DEFINE_list("segments", None, "Sequence of each token, 0 for padding: packed, cross.", flag_values=MASK_FLAGS)
flags.DEFINE_list("source_segments", None, "The same of the source: cross.", flag_values=MASK_FLAGS)
flags.DEFINE_boolean("causal", None, "Causal as well: packed.", flag_values=MASK_FLAGS)
flags.DEFINE_list("map_size", None, "Height and width in tokens: shifted_window.", flag_values=MASK_FLAGS)
flags.DEFINE_list("window_size", None, "Side, or height and width: shifted_window.", flag_values=MASK_FLAGS)
flags.DEFINE_list("shift", None, "Rows and columns; half a window: shifted_window.", flag_values=MASK_FLAGS)
flags.DEFINE_boolean("attend_padding", None, "Whether padding is seen: shifted_window.", flag_values=MASK_FLAGS)
flags.mark_flags_as_required(["kind"], flag_values=MASK_FLAGS)
NUMBERS = ("lengths", "prefix", "segments", "source_segments")
PAIRS = ("map_size", "window_size", "shift")

ATTENTION_FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "Folder of the run.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("checkpoint", "best", "Of the run: best, latest or a step.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("model", None, "Name of a published model.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("pretrained", None, "Its weights: a file, or hf:ORG/NAME.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("image", None, "An image file.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("prompt", None, "A text, for a language model.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("source", None, "A text to translate.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("layer", "", "One layer, head by head: its name or number.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("head", None, "One head; by default their mean.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_list("position", None, "Row and column of the pixel to attend from.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("out", None, "Folder; by default 'attention' in the workdir.", flag_values=ATTENTION_FLAGS)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A model whose attention is to be drawn, and how its images are prepared."""

    model: "nnx.Module"
    described: dict[str, Any]  # for the JSON
    transform: "ImageTransform"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    first_image: Callable[[], "bytes | np.ndarray"] | None = None


def draw_masks(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    read = {**dict.fromkeys(NUMBERS, whole_numbers), **dict.fromkeys(PAIRS, _pair)}
    options = {
        name: read[name](name, flag_values[name].value) if name in read else flag_values[name].value
        for name in flag_values
        if name not in ("kind", "out") and flag_values[name].value is not None
    }
    from swin_jax.visualization.drawing import save_figure
    from swin_jax.visualization.mask_kinds import draw_mask_kind

    out = pathlib.Path(flag_values.out or f"{flag_values.kind}.png")
    save_figure(draw_mask_kind(flag_values.kind, **options), out)
    return {"kind": flag_values.kind, "files": [str(out)]}


def draw_attention(flag_values: flags.FlagValues, overrides: list[str]) -> dict[str, Any]:
    workdir, name, pretrained = (flag_values[flag].value for flag in ("workdir", "model", "pretrained"))
    if bool(workdir) == bool(name or pretrained) or bool(name) != bool(pretrained):
        raise UserError("attention takes either --workdir=DIR, or --model=NAME and --pretrained=FILE")
    position = _pair("position", flag_values.position) if flag_values.position else None
    out = pathlib.Path(flag_values.out or pathlib.Path(workdir or ".") / "attention")
    opened = _open_run(pathlib.Path(workdir), flag_values.checkpoint) if workdir else _open_published(name, pretrained)
    for flag in ("prompt", "source"):
        if flag_values[flag].value is not None:
            raise UserError(f"--{flag} is for a model for text, and this one takes images: --image=FILE")
    from swin_jax.data.augment import normalize
    from swin_jax.visualization.attention_figures import draw_image_attention
    from swin_jax.visualization.drawing import save_figure

    image_u8 = _read_image(opened, flag_values.image)
    normalized = normalize(image_u8[None], mean=opened.mean, std=opened.std)[0]
    figures, layers, output = draw_image_attention(
        opened.model, image_u8, normalized, layer=flag_values.layer, head=flag_values.head, position=position
    )
    paths = {name: out / f"{name}.png" for name in figures}
    for name, path in paths.items():
        save_figure(figures[name], path)
    predicted = {"predicted_class": int(output.argmax())} if opened.model.head is not None else {}
    return {**opened.described, **predicted, "layers": layers, "files": list(map(str, paths.values()))}


def _open_run(workdir: pathlib.Path, checkpoint: str) -> Opened:
    """Open a checkpoint of a run on images."""
    import jax

    from swin_jax.data.sources import make_source
    from swin_jax.data.transforms import ImageTransform
    from swin_jax.training import sharding
    from swin_jax.training.checkpoint import Checkpoints
    from swin_jax.training.experiment import build
    from swin_jax.training.workdir import read_config

    config = config_from_json(read_config(workdir))
    mesh = sharding.make_mesh()
    experiment = build(config, mesh)
    with jax.set_mesh(mesh):
        checkpoints = Checkpoints(workdir / "checkpoints", best_metric=experiment.task.best_metric, read_only=True)
        restored = checkpoints.restore(experiment.target, which=checkpoint)
        checkpoints.close()
    if restored is None:
        raise UserError(f"{workdir} has no checkpoint yet")
    state, data = restored.state, config.data
    sizes = {"image_size": data.image_size, "channels": data.channels}

    def first_image():
        data_dir = data.data_dir or None
        source = make_source(data.source, data.eval_split, data_dir=data_dir, num_classes=data.num_classes, **sizes)
        return source[0]["image"]

    return Opened(
        experiment.model_def.merge(state.eval_params, state.model_state),
        {"workdir": str(workdir), "step": int(state.step)},
        ImageTransform(
            crop=data.eval_crop, crop_fraction=data.crop_fraction, interpolation=data.interpolation, **sizes
        ),
        config.task.mean,
        config.task.std,
        first_image,
    )


def _open_published(name: str, pretrained: str) -> Opened:
    """Open published weights of a model for images, without their head: attention needs no classes."""
    from flax import nnx

    from swin_jax.convert import load_pretrained
    from swin_jax.data.transforms import ImageTransform
    from swin_jax.models import create_model, list_models, published

    model = create_model(name, num_classes=0, rngs=nnx.Rngs(0))
    load_pretrained(model, pretrained)
    variant = published.find_variant(name, pretrained)
    is_preset = name in list_models()
    how = published.preprocessing(name, variant=variant) if is_preset else published.Preprocessing()
    transform = ImageTransform(
        image_size=how.image_size,
        channels=3,
        crop=how.crop,
        crop_fraction=how.crop_fraction,
        interpolation=how.interpolation,
    )
    return Opened(model, {"model": name, "pretrained": pretrained}, transform, how.mean, how.std)


def _read_image(opened: Opened, path: str | None) -> "np.ndarray":
    """Return the image as the model's preprocessing makes it, `[H, W, C]` uint8."""
    from PIL import UnidentifiedImageError

    if path is None and opened.first_image is None:
        raise UserError("--image=FILE is missing: published weights come without data")
    try:
        image = pathlib.Path(path).read_bytes() if path else opened.first_image()
    except OSError as error:
        raise UserError(f"the image {path} cannot be read: {error.strerror}") from error
    try:
        return opened.transform(image)
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image that Pillow knows") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"the image {path or 'of the evaluation split'} cannot be used: {error}") from error


def _pair(flag: str, texts: list[str]) -> tuple[int, int]:
    numbers = whole_numbers(flag, texts)
    numbers = numbers * 2 if len(numbers) == 1 else numbers
    if len(numbers) != 2 or min(numbers) < 0:
        raise UserError(f"--{flag} takes one or two whole numbers such as 7 or 6,8, not {','.join(texts)!r}")
    return numbers


COMMANDS = {"masks": (draw_masks, MASK_FLAGS), "attention": (draw_attention, ATTENTION_FLAGS)}

if __name__ == "__main__":
    run_subcommand(COMMANDS)
