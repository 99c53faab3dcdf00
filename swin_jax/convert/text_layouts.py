"""GPT-2 and Marian (opus-mt) as HF transformers writes them."""

from collections.abc import Callable

import numpy as np
from flax import nnx

from swin_jax.convert.layouts import Layout, Tensors
from swin_jax.convert.rules import KEEP, LINEAR, Rule, Transform, layer, merge_out, norm, same
from swin_jax.models.transformer import CausalTransformer, Transformer
from swin_jax.nn.positions import sinusoidal_positions

CONV1D = Transform(lambda weight: weight, lambda kernel: (merge_out(kernel),))  # GPT-2's linear layers are [in, out]
ROW = Transform(lambda row: row.squeeze(axis=0), lambda bias: (bias[None],))
_AGAIN = "the embedding table again"


def _prepare(
    root: str, outside: tuple[str, ...], tables: tuple[str, ...], fixed: tuple[str, ...] = ()
) -> Callable[[Tensors], tuple[Tensors, dict[str, str]]]:
    """Return a `prepare` for files with and without the name of the base model, `root`, before all but `outside`.

    Of `tables`, those that repeat an earlier one are left out, and so are `fixed` ones that hold Marian's sinusoids;
    where they hold something else, they stay, and no parameter wants them.
    """

    def prepare(tensors: Tensors) -> tuple[Tensors, dict[str, str]]:
        if not any(name.startswith(root) for name in tensors):
            tensors = {name if name.startswith(outside) else root + name: tensor for name, tensor in tensors.items()}
        first, *others = [name for name in tables if name in tensors] or [""]
        left_out = {name: _AGAIN for name in others if np.array_equal(tensors[name], tensors[first])}
        left_out |= {n: "sinusoids, which are computed" for n in fixed if n in tensors and _are_sinusoids(tensors[n])}
        return {name: tensor for name, tensor in tensors.items() if name not in left_out}, left_out

    return prepare


def _are_sinusoids(table: np.ndarray) -> bool:
    if table.ndim != 2 or table.shape[1] % 2:
        return False
    expected = sinusoidal_positions(*table.shape, interleaved=False)
    return np.allclose(table.astype(np.float32), expected, rtol=0, atol=1e-2)  # also in half precision


def _requires(*, positions: str, post_norm: bool, scales: bool | None = None) -> Callable[[nnx.Module], str | None]:
    """Return an `objection` to models of other arguments than these, which no shape of a parameter tells."""

    def objection(model: nnx.Module) -> str | None:
        wanted = {"positions": positions, "post_norm": post_norm, "scale_embedding": scales}
        has = {
            "positions": model.embed.positions,
            "post_norm": model.decoder_norm is None,
            "scale_embedding": None if scales is None else model.embed.scale != 1.0,
        }
        wrong = [f"{name}={value!r}" for name, value in wanted.items() if has[name] != value]
        return f"which has {', '.join(wrong)}" if wrong else None

    return objection


_H, _GPT2_TABLE = "transformer.h.{i}", "transformer.wte.weight"

GPT2 = Layout(
    name="HF GPT-2",
    model_class=CausalTransformer,
    mark=r"^(transformer\.)?h\.0\.attn\.c_attn\.weight$",
    rules=(
        *same("embed.embedding", _GPT2_TABLE),
        *same("embed.pos_embed", "transformer.wpe.weight"),
        *norm("decoder.{i}.norm1", f"{_H}.ln_1"),
        *layer("decoder.{i}.attention.qkv", f"{_H}.attn.c_attn", kernel=CONV1D),
        *layer("decoder.{i}.attention.proj", f"{_H}.attn.c_proj", kernel=CONV1D),
        *norm("decoder.{i}.norm3", f"{_H}.ln_2"),
        *layer("decoder.{i}.mlp.fc1", f"{_H}.mlp.c_fc", kernel=CONV1D),
        *layer("decoder.{i}.mlp.fc2", f"{_H}.mlp.c_proj", kernel=CONV1D),
        *norm("decoder_norm", "transformer.ln_f"),
        Rule("head.kernel", ("lm_head.weight",), LINEAR),
        Rule("head.kernel", (_GPT2_TABLE,), LINEAR),  # tied in the file, but not in the model
    ),
    prepare=_prepare("transformer.", ("lm_head.",), (_GPT2_TABLE, "lm_head.weight")),
    ignored=((r"\.attn\.(bias|masked_bias)$", "a buffer of the causal mask"),),
    has_class_head=False,
    objection=_requires(positions="learned", post_norm=False, scales=False),
)


def _marian_attention(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (
        *layer(f"{ours}.qkv", *(f"{theirs}.{name}_proj" for name in "qkv"), parts=(1, 1, 1)),
        *layer(f"{ours}.proj", f"{theirs}.out_proj"),
    )


def _marian_mlp(ours: str, theirs: str) -> tuple[Rule, ...]:
    return (*layer(f"{ours}.mlp.fc1", f"{theirs}.fc1"), *layer(f"{ours}.mlp.fc2", f"{theirs}.fc2"))


_ENCODER, _DECODER = "model.encoder.layers.{i}", "model.decoder.layers.{i}"
_MARIAN_TABLES = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")

MARIAN = Layout(
    name="HF Marian",
    model_class=Transformer,
    mark=r"^(model\.)?decoder\.layers\.0\.encoder_attn\.q_proj\.weight$",
    rules=(
        *(Rule("embed.embedding", (table,), KEEP) for table in _MARIAN_TABLES),
        *_marian_attention("encoder.{i}.attention", f"{_ENCODER}.self_attn"),
        *norm("encoder.{i}.norm1", f"{_ENCODER}.self_attn_layer_norm"),
        *_marian_mlp("encoder.{i}", _ENCODER),
        *norm("encoder.{i}.norm2", f"{_ENCODER}.final_layer_norm"),
        *_marian_attention("decoder.{i}.attention", f"{_DECODER}.self_attn"),
        *norm("decoder.{i}.norm1", f"{_DECODER}.self_attn_layer_norm"),
        *_marian_attention("decoder.{i}.cross_attention", f"{_DECODER}.encoder_attn"),
        *norm("decoder.{i}.norm2", f"{_DECODER}.encoder_attn_layer_norm"),
        *_marian_mlp("decoder.{i}", _DECODER),
        *norm("decoder.{i}.norm3", f"{_DECODER}.final_layer_norm"),
        Rule("logits_bias", ("final_logits_bias",), ROW),
        *(Rule("head.kernel", (table,), LINEAR) for table in ("lm_head.weight", *_MARIAN_TABLES)),
    ),
    prepare=_prepare(
        "model.",
        ("lm_head.", "final_logits_bias"),
        (*_MARIAN_TABLES, "lm_head.weight"),
        fixed=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
    ),
    has_class_head=False,
    objection=_requires(positions="sinusoidal_halves", post_norm=True),
)

LAYOUTS = (GPT2, MARIAN)
