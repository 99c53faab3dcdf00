"""Checkpoint files as a dict of numpy arrays: .npz, .safetensors and PyTorch's, told apart by their content."""

import argparse
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from swin_jax.errors import UserError

Tensors = dict[str, np.ndarray]
_HF_PREFIX = "hf:"
_HF_FILES = ("model.safetensors", "pytorch_model.bin")
# What a PyTorch file holds its weights under; the rest of such a file is the state of a training run.
_WRAPPERS = ("model", "state_dict")


def read_checkpoint(path: str | Path) -> tuple[Tensors, dict[str, str]]:
    """Read a file's tensors, and tell which of its entries were left out and why.

    `path` is a file, or `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` or `hf:ORG/NAME/FILE` for one of the Hugging Face Hub
    (kept in its cache). Nothing in a file is ever run. Raises UserError for what is no readable checkpoint.
    """
    path = local_path(path)
    if not path.is_file():
        raise UserError(f"no such checkpoint file: {path}")
    try:
        read = _reader(path)
        tensors, left_out = read(path)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, safetensors.SafetensorError) as e:
        raise UserError(f"{path} is damaged or truncated: {_one_line(e)}") from e
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors, left_out


def local_path(path: str | Path) -> Path:
    """Return where a file is; one of the Hugging Face Hub, `hf:ORG/NAME...`, is fetched into its cache first."""
    return _download(str(path).removeprefix(_HF_PREFIX)) if str(path).startswith(_HF_PREFIX) else Path(path)


def _reader(path: Path) -> Callable[[Path], tuple[Tensors, dict[str, str]]]:
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return _read_torch
        if any(name.endswith(".npy") for name in names):
            return _read_npz
    elif len(start) == 9 and start[8:] == b"{":  # a little-endian length, then a JSON header
        return _read_safetensors
    elif start[:1] == b"\x80":
        return _read_torch
    raise UserError(f"{path} is no checkpoint: neither .npz nor .safetensors nor a PyTorch file")


def _read_npz(path: Path) -> tuple[Tensors, dict[str, str]]:
    tensors = {}
    with np.load(path, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                tensors[name] = archive[name]
            except ValueError as error:
                if "allow_pickle" in str(error):
                    raise UserError(f"{path} holds pickled objects ({name}), which are refused") from error
                raise
    return tensors, {}


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    return safetensors.numpy.load_file(path), {}


def _read_torch(path: Path) -> tuple[Tensors, dict[str, str]]:
    _refuse_code(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch (the CPU build will do)") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # DeiT's options; a class of plain attributes
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"WeightsUnpickler error: (.*?)( was not an allowed global| Please use|$)", str(error), re.M)
        reason = reason[1] if reason else "it holds more than tensors and plain containers"
        raise UserError(f"{path} is refused, not run: {reason}") from error
    except RuntimeError as error:  # PyTorch's for a damaged archive
        raise UserError(f"{path} is damaged or truncated: {_one_line(error)}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    left_out = {}
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            left_out |= {str(name): f"beside {wrapper!r}" for name in content if name != wrapper}
            content = content[wrapper]
    tensors = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            value = value.detach()
            tensors[str(name)] = (value.float() if value.is_floating_point() else value).numpy()
        else:
            left_out[str(name)] = "not a tensor"
    return tensors, left_out


_HARMLESS = ("torch.", "collections.", "numpy.", "_codecs.", "argparse.Namespace", "__builtin__.set", "builtins.set")


def _refuse_code(path: Path) -> None:
    """Raise UserError if the pickle in a PyTorch file names anything that no checkpoint needs; nothing is unpickled.

    `torch.load(weights_only=True)` is what keeps code from running. This says so without PyTorch, and in one line.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            content = archive.read(name)
    else:
        content = path.read_bytes()
    for name in _imports(content):
        if not name.startswith(_HARMLESS):
            raise UserError(f"{path} is a pickle with code in it ({name}): refused, not run")


def _imports(content: bytes) -> Iterator[str]:
    """Yield the `module.name`s that a pickle imports, as far as its opcodes spell them out."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "INST"):
            yield argument.replace(" ", ".", 1)
        elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
            yield ".".join(strings[-2:])
        if isinstance(argument, str) and "UNICODE" in opcode.name:
            strings.append(argument)
        elif opcode.name not in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            strings.clear()


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = name.partition("@")
    parts = name.split("/")
    if len(parts) < 2 or not all(parts):
        raise UserError(f"hf:{name} is not of the form hf:ORG/NAME")
    repository, files = "/".join(parts[:2]), ("/".join(parts[2:]),) if parts[2:] else _HF_FILES
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except (OSError, ValueError, EntryNotFoundError) as error:
            absent = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
            if not absent:  # but no network, no such repository, no permission
                raise UserError(f"cannot fetch {repository} from the Hugging Face Hub: {_one_line(error)}") from error
    raise UserError(f"{repository} on the Hugging Face Hub has none of {', '.join(files)}")


def _one_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
