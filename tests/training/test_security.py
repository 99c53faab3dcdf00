"""A workdir from a stranger: opening, verifying or resuming it runs nothing of his and touches nothing outside."""

import ast
import pathlib
import pickle
import sys
from shutil import copytree as copy

import pytest
import tensorstore as ts
from tensorboardX.crc32c import crc32c

from swin_jax.checkpoint import verify
from swin_jax.errors import UserError
from swin_jax.runs import open_run
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.default_config import default_config
from swin_jax.training.loop import train
from swin_jax.training.verification import verify_checkpoint, verify_checkpoints
from swin_jax.training.workdir import create_workdir
from tests.training.test_checkpoint import save_steps

ROOT = pathlib.Path(__file__).parents[2]
PLANTED = (
    "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef name(*arguments, **options): return []\n"
)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported."""
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("planted", None)
    return tmp_path / "ran"


def config_that_names(key, value):
    config = default_config()
    config.model.update(patch_size=2, embed_dim=8, depths=(2,), num_heads=(2,), window_size=2)
    config.data.update(image_size=8, channels=1)
    config.task.update(mean=(0.5,), std=(0.5,))
    if key == "data.source of texts":
        config.data.kind, key = "text", "data.source"
    group, name = key.split(".")
    config[group][name] = value
    return config


@pytest.mark.parametrize(
    "key", ["data.source", "data.source of texts", "task.name", "model.name", "model.attention", "model.norm"]
)
def test_names_in_a_strangers_config_are_not_imported(key, planted, tmp_path):
    workdir = tmp_path / "run"
    create_workdir(workdir, config_that_names(key, "planted:name"))
    with pytest.raises(UserError, match=r"names 'planted:name'.* --allow=planted:name"):
        open_run(workdir)
    with pytest.raises(UserError, match="--allow=planted:name"):
        open_run(workdir, allow=["planted:other"])
    assert verify(workdir)["good"] == []
    assert not planted.exists()
    with pytest.raises(Exception, match=r"(?s).+"):  # it is no model, task or data
        open_run(workdir, allow=["planted:name"])
    assert planted.exists()


def test_a_function_of_the_standard_library_is_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_that_names("data.source", "os:mkdir")
    config.data.train_split = "made"
    create_workdir(tmp_path / "run", config)
    with pytest.raises(UserError, match="'os:mkdir'"):
        open_run(tmp_path / "run")
    assert not (tmp_path / "made").exists()
    with pytest.raises(AttributeError):  # it gives no data, but was called
        open_run(tmp_path / "run", allow=["os:mkdir"])
    assert (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def saved(setup, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger") / "run" / "checkpoints"
    checkpoints = Checkpoints(folder, keep=2)
    save_steps(checkpoints, setup, [0.1, 0.2])
    checkpoints.close()
    return folder


@pytest.mark.parametrize("linked", ["meta/metadata", "state/d", "state/manifest.ocdbt", "."])
def test_links_in_a_checkpoint_are_refused(linked, saved, setup, tmp_path):
    """Not even where they lead to what was saved."""
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    copy(saved / "2", checkpoints / "2")
    path = checkpoints / "2" / linked
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    (verdict,) = verify_checkpoints(checkpoints)
    assert (verdict.state, "link" in verdict.reason) == ("damaged", True)
    with pytest.raises(UserError, match="link"):
        Checkpoints(checkpoints, read_only=True).restore(setup.target)


@pytest.mark.parametrize("linked", ["metrics.jsonl", "checkpoints", "damaged_checkpoints", "run.lock", "attention"])
def test_links_in_a_workdir_are_refused_before_anything_is_written(linked, tmp_path):
    config = config_that_names("data.source", "digits")
    create_workdir(tmp_path / "run", config)
    outside, path = tmp_path / "outside", tmp_path / "run" / linked
    if path.exists():
        path.rename(outside)
    elif linked == "run.lock":
        outside.write_text("precious")
    else:
        outside.mkdir()
    path.symlink_to(outside)
    before = outside.stat().st_mtime_ns
    for opening in (lambda: train(config, workdir=str(tmp_path / "run")), lambda: open_run(tmp_path / "run")):
        with pytest.raises(UserError, match=f"{linked} is a link"):
            opening()
    assert outside.stat().st_mtime_ns == before
    assert outside.is_dir() or outside.read_text() in ("precious", "")


def read_elsewhere(state, prefix):
    """Make TensorStore's database look for its data under another prefix of the same length."""
    path = state / "manifest.ocdbt"
    content = path.read_bytes()[:-4].replace(b"aaaaaa/", prefix)
    path.write_bytes(content + crc32c(content).to_bytes(4, "little"))


@pytest.mark.parametrize("prefix", ["bbbbbb/", "../out/"])
def test_arrays_outside_of_the_checkpoint_are_not_read(prefix, tmp_path):
    state = tmp_path / "state"
    names = {"value_data_prefix": "aaaaaa/", "btree_node_data_prefix": "aaaaaa/"}
    store = ts.KvStore.open(
        {"driver": "ocdbt", "base": f"file://{state}/", "config": {"compression": None}, **names}
    ).result()
    store.write("key", b"value").result()
    read_elsewhere(state, prefix.encode())
    (state / "aaaaaa").rename(state / prefix)
    again = ts.KvStore.open({"driver": "ocdbt", "base": f"file://{state}/"}).result()
    if prefix == "bbbbbb/":  # in the folder: what was changed is understood
        assert again.read("key").result().value == b"value"
    else:
        with pytest.raises(ValueError, match=r"[Ii]nvalid"):
            again.read("key").result()


def test_names_of_arrays_lead_nowhere(saved, tmp_path):
    copy(saved / "2", tmp_path / "2")
    path = tmp_path / "2" / "state" / "_METADATA"
    path.write_text(path.read_text().replace('"kernel"', '"../../kernel"').replace("'kernel'", "'../../kernel'"))
    with pytest.raises(Exception, match="is no name of an array"):
        verify_checkpoint(tmp_path / "2")


events: list[str] | None = None


def listen(event, arguments):
    if events is not None and event.startswith(("pickle.", "marshal.loads", "os.system", "os.exec", "subprocess.")):
        events.append(f"{event} {arguments}")
    if events is not None and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"write {arguments[0]}")


def test_nothing_is_unpickled_run_or_written(saved, setup):
    """Python's own audit, of restoring and of verifying."""
    global events
    sys.addaudithook(listen)
    verify_checkpoint(saved / "2")  # the modules that this imports are read from caches
    checkpoints = Checkpoints(saved, read_only=True)
    try:
        events = []
        checkpoints.restore(setup.target)
        verify_checkpoint(saved / "2")
        seen, events = events, []
        pickle.loads(pickle.dumps(pathlib.PurePosixPath("x")))
        assert any(event.startswith("pickle.find_class") for event in events)
    finally:
        events = None
    assert seen == []


def test_no_module_unpickles():
    """`convert/readers.py` alone may name pickle: it scans PyTorch files, and has PyTorch read their tensors only."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pickletools", "torch"}
    for path in sorted((ROOT / "swin_jax").rglob("*.py")):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if path.name != "readers.py":
            assert not {name.partition(".")[0] for name in names} & forbidden, path
        for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
            called, options = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
            if called == "np.load":
                assert options.get("allow_pickle", "False") == "False", path
            if called == "torch.load":
                assert options.get("weights_only") == "True", path
            assert called not in ("eval", "exec", "yaml.load", "yaml.unsafe_load"), path
