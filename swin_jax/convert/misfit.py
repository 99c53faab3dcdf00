"""What does not fit between a file and a model, told in one line."""

import re
from collections.abc import Collection, Iterable

from swin_jax.errors import UserError

HEADS = ("head.", "head_dist.")
# What a LoadError advises; commands replace it by what it is with them.
ADVICE_OTHER_CLASSES = "for another number of classes pass fresh_head=True"
ADVICE_NO_HEAD = "the file has no such head, for the model's own pass fresh_head=True"
ADVICE_OTHER_SIZE = "for another resolution or window pass resize='bicubic'"
# Tensors by which models like ours are told, that are none of ours.
_STRANGERS = (
    (r"attn\.(logit_scale|cpb_mlp|meta_mlp)|attention\.(self\.)?logit_scale", "Swin v2"),
    (r"blocks\.\d+\.spatial_mlp\.", "Swin-MLP"),
    (r"(^|\.)absolute_pos_embed$", "Swin with absolute positions"),
    (r"(^|\.)reg(ister)?_tokens?$", "ViT with register tokens"),
    (r"(^|\.)(norm_pre|pre_layrnorm)\.", "ViT with a norm before its blocks, as CLIP has"),
    (r"^blocks_token_only\.", "CaiT"),
    (r"attn\.rel_pos\.", "ViT with relative positions"),
    (r"^beit\.|^blocks\.0\.attn\.(q_bias|relative_position_bias_table)$", "BEiT or a ViT like it"),
)


class LoadError(UserError):
    """A file that does not fit a model; its attributes list everything that does not, the message the first of each.

    Attributes:
        missing: parameters that the file lacks. unexpected: tensors of the file that the model has no place for.
        misshapen: parameter → the shapes, in our order of axes.
    """

    def __init__(self, message: str, missing: list[str], unexpected: list[str], misshapen: dict[str, str]):
        super().__init__(message)
        self.missing, self.unexpected, self.misshapen = missing, unexpected, misshapen

    @property
    def is_about_heads_alone(self) -> bool:
        """Whether nothing but the number of classes is another."""
        return not self.missing and not self.unexpected and all(name.startswith(HEADS) for name in self.misshapen)


def misfit(
    what: str,
    model: str,
    missing: list[str],
    unexpected: list[str],
    misshapen: dict[str, str],
    *,
    resizable: Collection[str],
) -> LoadError:
    """Return the error of a file that does not fit; `resizable` are the misshapen that a resize would mend."""
    message = _stranger(what, unexpected)
    if message is None:
        parts = []
        if missing:
            parts.append(f"{len(missing)} parameters are missing ({_some(missing)})")
        if unexpected:
            parts.append(f"{len(unexpected)} tensors have no place in the model ({_some(unexpected)})")
        if misshapen:
            shapes = [f"{name}: {how}" for name, how in misshapen.items()]
            parts.append(f"{len(misshapen)} have another shape ({_some(shapes)})")
        parts += _advice(missing, unexpected, misshapen, resizable)
        message = f"{what} does not fit this {model}: {'; '.join(parts)}"
    return LoadError(message, missing, unexpected, misshapen)


def unknown_layout(path: object, names: Iterable[str]) -> str:
    """Return the message about a file with the keys of no layout."""
    names = sorted(names)
    return _stranger(path, names) or f"{path} has the keys of no layout known here ({', '.join(names[:3])}, ...)"


def _stranger(what: object, names: Collection[str]) -> str | None:
    for pattern, kind in _STRANGERS:
        for name in names:
            if re.search(pattern, name):
                return f"{what} holds a {kind} ({name}), which no model here is"
    return None


def _advice(
    missing: list[str], unexpected: list[str], misshapen: dict[str, str], resizable: Collection[str]
) -> list[str]:
    heads = [name for name in misshapen if name.startswith(HEADS)]
    missing_heads = [name for name in missing if name.startswith(HEADS)]
    if not unexpected and {*missing, *misshapen} == {*heads, *missing_heads, *resizable}:
        advice = [ADVICE_NO_HEAD] if missing_heads else [ADVICE_OTHER_CLASSES] if heads else []
        return [*advice, *([ADVICE_OTHER_SIZE] if resizable else [])]
    if not misshapen and bool(missing) != bool(unexpected):
        if missing and all(re.search(r"(blocks|encoder|decoder)\.\d+\.", name) for name in missing):
            return ["the file's model is less deep"]
        blocks = r"(blocks|layer|layers|encoderblock|\bh)[._]\d+"
        if unexpected and all(re.search(blocks, name) for name in unexpected):
            return ["the file's model is deeper"]
    return []


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
