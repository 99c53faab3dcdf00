"""Draw masks and attention as PNG files:

python -m swin_jax.visualize masks --kind=causal|padding|prefix|packed|cross|shifted_window [--length=8 ...] --out=FILE
python -m swin_jax.visualize attention --workdir=DIR [--checkpoint=best] [--image=FILE|--example=N] [--out=DIR]
python -m swin_jax.visualize attention --workdir=DIR [--checkpoint=best] --text=TEXT [--source=TEXT] [--out=DIR]
python -m swin_jax.visualize attention --model=NAME --pretrained=FILE|hf:ORG/NAME --image=FILE [--out=DIR]

A run on images needs no --image: the first one of its evaluation split is taken. A run on pairs of texts needs
--source, and draws its own translation where there is no --text. docs/seeing.md tells what is drawn.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from swin_jax.commands import define_allow, run_subcommand, whole_numbers
from swin_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from swin_jax.data.text.tokenizer import Tokenizer
    from swin_jax.data.transforms import ImageTransform
    from swin_jax.runs import Run

MASK_FLAGS = flags.FlagValues()
flags.DEFINE_string("kind", None, "Which mask; see above.", flag_values=MASK_FLAGS)
flags.DEFINE_string("out", None, "The PNG file; by default KIND.png.", flag_values=MASK_FLAGS)
flags.DEFINE_integer("length", None, "Tokens: causal, padding, prefix.", flag_values=MASK_FLAGS)
flags.DEFINE_integer("keys", None, "Keys, if more than queries (a cache): causal.", flag_values=MASK_FLAGS)
flags.DEFINE_list("lengths", None, "Real tokens of each sequence: padding, prefix.", flag_values=MASK_FLAGS)
flags.DEFINE_list("prefix", None, "Length of the prefix, or several: prefix.", flag_values=MASK_FLAGS)
flags.DEFINE_list("segments", None, "Sequence of each token, 0 for padding: packed, cross.", flag_values=MASK_FLAGS)
flags.DEFINE_list("source_segments", None, "The same of the source: cross.", flag_values=MASK_FLAGS)
flags.DEFINE_boolean("causal", None, "Causal as well: padding, packed.", flag_values=MASK_FLAGS)
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
flags.DEFINE_string("model", None, "Name of a published model for images.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("pretrained", None, "Its weights: a file, or hf:ORG/NAME.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("image", None, "An image file.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("example", None, "Its number in the run's evaluation split.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_list("position", None, "Row and column of the pixel to attend from.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("text", None, "A text, or the translation of --source.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("source", None, "A text to translate.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("prefix", None, "Tokens at the beginning that all see.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("layer", "", "One layer, head by head: its name or number.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_integer("head", None, "One head alone.", flag_values=ATTENTION_FLAGS)
flags.DEFINE_string("out", None, "Folder; by default 'attention' in the workdir.", flag_values=ATTENTION_FLAGS)
define_allow(ATTENTION_FLAGS)
OF_IMAGES, OF_TEXT = ("image", "example", "position"), ("text", "source", "prefix")


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A model for images whose attention is to be drawn, and how its images are prepared."""

    model: "nnx.Module"
    transform: "ImageTransform"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    example: Callable[[int], "np.ndarray"] | None = None  # prepared, [H, W, C] uint8


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
    if workdir:
        from swin_jax.runs import open_run

        run = open_run(pathlib.Path(workdir), checkpoint=flag_values.checkpoint, allow=flag_values.allow)
        described = {"workdir": workdir, "step": int(run.restored.state.step)}
        is_text = run.config.data.kind != "images"
    else:
        described, is_text = {"model": name, "pretrained": pretrained}, False
    for flag in OF_IMAGES if is_text else OF_TEXT:
        if flag_values[flag].value is not None:
            kind, hint = ("images", "--text=...") if is_text else ("text", "--image=FILE")
            raise UserError(f"--{flag} is for a model for {kind}, and this one is not: {hint}")
    if is_text:
        figures, found = _draw_text(run, flag_values)
    else:
        figures, found = _draw_image(_of_run(run) if workdir else _of_published(name, pretrained), flag_values)
    from swin_jax.visualization.drawing import save_figure

    out = pathlib.Path(flag_values.out or pathlib.Path(workdir or ".") / "attention")
    paths = {name: out / f"{name}.png" for name in figures}
    for name, path in paths.items():
        save_figure(figures[name], path)
    return {**described, **found, "files": list(map(str, paths.values()))}


def _draw_image(opened: ImageModel, flag_values: flags.FlagValues) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of an image by their names, and what is told of them."""
    position = _pair("position", flag_values.position) if flag_values.position else None
    image_u8 = _read_image(opened, flag_values.image, flag_values.example)
    from swin_jax.data.augment import normalize
    from swin_jax.visualization.attention_figures import draw_image_attention

    normalized = normalize(image_u8[None], mean=opened.mean, std=opened.std)[0]
    figures, layers, output = draw_image_attention(
        opened.model, image_u8, normalized, layer=flag_values.layer, head=flag_values.head, position=position
    )
    predicted = {"predicted_class": int(output.argmax())} if opened.model.head is not None else {}
    return figures, {**predicted, "layers": layers}


def _draw_text(run: "Run", flag_values: flags.FlagValues) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of a text by their names, and what is told of them."""
    from swin_jax.visualization.attention_figures import draw_text_attention

    text, source, prefix = (flag_values[flag].value for flag in OF_TEXT)
    tokenizer, model = run.experiment.inputs.tokenizer, run.model()
    source_ids = []
    if run.config.data.kind == "text_pairs":
        if source is None:
            raise UserError("--source=... is missing: the text to translate")
        source_ids = [*tokenizer.encode(source), tokenizer.eos_id]
        tokens = _translate(run, model, source_ids) if text is None else _whole(tokenizer, text)
    elif source is not None:
        raise UserError("--source is for a model that translates, and this one does not: --text=...")
    elif text is None:
        raise UserError("--text=... is missing")
    else:
        tokens = _whole(tokenizer, text) if run.config.text.packed else tokenizer.encode(text)
    labels = {"labels": tokenizer.token_texts(tokens), "source_labels": tokenizer.token_texts(source_ids)}
    figures, layers = draw_text_attention(
        model, tokens, source=source_ids, prefix=prefix, layer=flag_values.layer, head=flag_values.head, **labels
    )
    told = {"tokens": labels["labels"], **({"source_tokens": labels["source_labels"]} if source_ids else {})}
    return figures, {**told, "layers": layers}


def _whole(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return the ids of a text as packed rows and targets have it, from bos to eos."""
    return [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]


def _translate(run: "Run", model: "nnx.Module", source_ids: list[int]) -> list[int]:
    """Return the most probable translation, token by token."""
    from swin_jax.decoding import TokenRules, generate, token_lists

    tokenizer = run.experiment.inputs.tokenizer
    rules = TokenRules(eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id or 0)
    generated = generate(
        model,
        [[tokenizer.bos_id]],
        source=[source_ids],
        max_new_tokens=run.config.text.sequence_length - 1,
        temperature=0.0,
        rules=rules,
    )
    return [tokenizer.bos_id, *token_lists(generated.tokens, generated.lengths)[0]]


def _of_run(run: "Run") -> ImageModel:
    from swin_jax.data.transforms import ImageTransform

    data, task = run.config.data, run.config.task

    def example(number: int) -> "np.ndarray":
        batches = run.experiment.inputs.eval_batches(batch_size=1)
        if not 0 <= number < len(batches):
            raise UserError(f"there is no --example={number}: the evaluation split has 0 to {len(batches) - 1}")
        return next(itertools.islice(batches, number, None))["image"][0]

    transform = ImageTransform(
        crop=data.eval_crop,
        crop_fraction=data.crop_fraction,
        interpolation=data.interpolation,
        image_size=data.image_size,
        channels=data.channels,
    )
    return ImageModel(run.model(), transform, task.mean, task.std, example)


def _of_published(name: str, pretrained: str) -> ImageModel:
    """Open published weights without their head: attention needs no classes."""
    from flax import nnx

    from swin_jax.convert import load_pretrained
    from swin_jax.data.transforms import ImageTransform
    from swin_jax.models import create_model, list_models, published, transformer

    if name in transformer.PRESETS or name in transformer.CAUSAL_PRESETS:
        raise UserError(f"--model={name} is for text: published weights are drawn of models for images alone")
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
    return ImageModel(model, transform, how.mean, how.std)


def _read_image(opened: ImageModel, path: str | None, example: int | None) -> "np.ndarray":
    """Return an image as the model's preprocessing makes it, `[H, W, C]` uint8."""
    from PIL import UnidentifiedImageError

    if path is None and opened.example is None:
        raise UserError("--image=FILE is missing: published weights come without data")
    if path is None:
        return opened.example(example or 0)
    if example is not None:
        raise UserError("--image and --example: give one of them")
    try:
        return opened.transform(pathlib.Path(path).read_bytes())
    except UnidentifiedImageError as error:
        raise UserError(f"{path} is no image that Pillow knows") from error
    except (OSError, ValueError, SyntaxError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the image {path} cannot be read: {reason}") from error


def _pair(flag: str, texts: list[str]) -> tuple[int, int]:
    numbers = whole_numbers(flag, texts)
    numbers = numbers * 2 if len(numbers) == 1 else numbers
    if len(numbers) != 2 or min(numbers) < 0:
        raise UserError(f"--{flag} takes one or two whole numbers such as 7 or 6,8, not {','.join(texts)!r}")
    return numbers


COMMANDS = {"masks": (draw_masks, MASK_FLAGS), "attention": (draw_attention, ATTENTION_FLAGS)}

if __name__ == "__main__":
    run_subcommand(COMMANDS)
