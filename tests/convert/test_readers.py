"""Files are told apart by their content; damaged, foreign and dangerous ones give one clear line."""

import io
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from swin_jax.convert import read_checkpoint, readers
from swin_jax.errors import UserError

TENSORS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, np.float32)}


def refusal(path) -> str:
    with pytest.raises(UserError) as failure:
        read_checkpoint(path)
    message = str(failure.value)
    assert "\n" not in message
    return message


def write(path, kind: str):
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **TENSORS)
    else:
        safetensors.numpy.save_file(TENSORS, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ""])
def test_the_content_tells_the_kind_and_not_the_name(kind, suffix, tmp_path):
    tensors, left_out = read_checkpoint(write(tmp_path / f"file{suffix}", kind))
    assert left_out == {}
    assert tensors.keys() == TENSORS.keys()
    np.testing.assert_array_equal(tensors["a.weight"], TENSORS["a.weight"])


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
@pytest.mark.parametrize("keep", [0.2, 0.6, 0.97])
def test_a_truncated_file_is_told(kind, keep, tmp_path):
    content = write(tmp_path / "whole", kind).read_bytes()
    (tmp_path / "cut").write_bytes(content[: int(keep * len(content))])
    assert "damaged or truncated" in refusal(tmp_path / "cut")


def test_a_flipped_bit_in_an_npz_is_told(tmp_path):
    content = bytearray(write(tmp_path / "file.npz", "npz").read_bytes())
    place = bytes(content).index(TENSORS["a.weight"].tobytes())
    content[place + 5] ^= 1
    (tmp_path / "file.npz").write_bytes(content)
    assert "damaged or truncated" in refusal(tmp_path / "file.npz")


@pytest.mark.parametrize(
    "content", [b"", b"no", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_what_is_no_checkpoint_is_told(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "is no checkpoint" in refusal(tmp_path / "model.safetensors")


def test_missing_files_folders_and_empty_archives_are_told(tmp_path):
    assert "no such checkpoint file" in refusal(tmp_path / "absent.npz")
    assert "no such checkpoint file" in refusal(tmp_path)
    np.savez(tmp_path / "empty.npz")
    assert "empty.npz" in refusal(tmp_path / "empty.npz")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    assert "is no checkpoint" in refusal(tmp_path / "text.zip")


class Bomb:
    """Leaves a trace if it is ever unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(protocol, zipped, tmp_path):
    content = pickle.dumps({"model": {"a": Bomb(tmp_path / "trace")}}, protocol=protocol)
    path = tmp_path / "model.pth"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("model/data.pkl", content)
    else:
        path.write_bytes(content)
    message = refusal(path)
    if protocol > 0 or zipped:
        assert "pickle with code in it" in message
        assert "refused, not run" in message
    assert not (tmp_path / "trace").exists()


def test_a_truncated_pickle_is_told(tmp_path):
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": [1.0] * 50}, protocol=2)[:-20])
    assert "damaged or truncated" in refusal(tmp_path / "model.pth")


def test_pickled_objects_in_an_npz_are_refused_and_not_run(tmp_path):
    objects = np.array([Bomb(tmp_path / "trace")], dtype=object)
    np.savez(tmp_path / "model.npz", **TENSORS, objects=objects)
    message = refusal(tmp_path / "model.npz")
    assert "pickled objects (objects)" in message
    assert not (tmp_path / "trace").exists()


def pickled(value) -> bytes:
    buffer = io.BytesIO()
    pickle.dump(value, buffer, protocol=2)
    return buffer.getvalue()


def test_pytorch_files_without_pytorch_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "model.pth").write_bytes(pickled({"model": {}}))
    assert "pip install torch" in refusal(tmp_path / "model.pth")


class StandInTensor:
    """As much of torch.Tensor as reading takes."""

    def __init__(self, values):
        self.values = np.asarray(values)

    def detach(self):
        return self

    def is_floating_point(self):
        return self.values.dtype.kind == "f"

    def float(self):
        return StandInTensor(self.values.astype(np.float32))

    def numpy(self):
        return self.values


@pytest.fixture
def torch_file(tmp_path, monkeypatch):
    """Return a function that makes a file which a stand-in torch loads as given, never without weights_only."""

    def make(content):
        def load(path, *, map_location, weights_only):
            assert weights_only is True
            assert map_location == "cpu"
            if isinstance(content, Exception):
                raise content
            return content

        torch = types.ModuleType("torch")
        torch.load, torch.Tensor = load, StandInTensor
        torch.serialization = types.SimpleNamespace(safe_globals=lambda _: io.BytesIO())  # a context
        monkeypatch.setitem(sys.modules, "torch", torch)
        (tmp_path / "model.pth").write_bytes(pickled({}))
        return tmp_path / "model.pth"

    return make


def test_training_checkpoints_of_pytorch_are_unwrapped(torch_file):
    weights = {"w": StandInTensor(np.ones(2, np.float16)), "index": StandInTensor(np.arange(2)), "version": 3}
    tensors, left_out = read_checkpoint(torch_file({"model": weights, "optimizer": {}, "epoch": 299}))
    assert tensors["w"].dtype == np.float32
    assert tensors["index"].dtype == np.int64
    assert left_out == {"optimizer": "beside 'model'", "epoch": "beside 'model'", "version": "not a tensor"}


def test_what_pytorch_refuses_is_told_in_one_line(torch_file):
    error = pickle.UnpicklingError("Weights only load failed.\nWeightsUnpickler error: no such class\n")
    assert refusal(torch_file(error)).endswith("refused, not run: no such class")
    assert "more than tensors" in refusal(torch_file(pickle.UnpicklingError("?")))
    assert "damaged or truncated: PytorchStream" in refusal(torch_file(RuntimeError("PytorchStreamReader failed")))
    assert "holds a list" in refusal(torch_file([1, 2]))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand in for the Hugging Face Hub: `hub` maps (repository, file, revision) to a path or an error."""
    import huggingface_hub

    files = {}

    def download(repository, file, revision=None):
        found = files.get((repository, file, revision), huggingface_hub.errors.EntryNotFoundError("404"))
        if isinstance(found, Exception):
            raise found
        return str(found)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return files


def test_the_hub_gives_safetensors_before_bin_and_any_named_file_and_revision(hub, tmp_path):
    hub["org/name", "model.safetensors", None] = write(tmp_path / "model.safetensors", "safetensors")
    hub["org/name", "weights.npz", "v2"] = write(tmp_path / "weights.npz", "npz")
    assert read_checkpoint("hf:org/name")[0].keys() == TENSORS.keys()
    assert read_checkpoint("hf:org/name/weights.npz@v2")[0].keys() == TENSORS.keys()
    assert "has none of model.safetensors, pytorch_model.bin" in refusal("hf:org/other")
    assert "hf:ORG/NAME" in refusal("hf:name")


def test_no_network_is_told_in_one_line(hub):
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub["org/name", "model.safetensors", None] = LocalEntryNotFoundError("cannot find\nanything in the cache")
    assert "cannot fetch org/name from the Hugging Face Hub: cannot find" in refusal("hf:org/name")


def test_pickle_imports_are_read_without_unpickling():
    imports = list(readers._imports(pickle.dumps([io.BytesIO, types.SimpleNamespace], protocol=4)))
    assert imports == ["_io.BytesIO", "types.SimpleNamespace"]
