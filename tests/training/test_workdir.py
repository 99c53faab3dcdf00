import errno
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from swin_jax.errors import RunError, UserError
from swin_jax.training import workdir as workdirs
from swin_jax.training.default_config import check_config, default_config

ROOT = pathlib.Path(__file__).parents[2]


def changed_config(**values):
    config = default_config()
    for key, value in values.items():
        config[key] = value
    return config


def test_config_round_trip(tmp_path):
    config = default_config()
    config.model.depths = (2, 2)
    workdirs.create_workdir(tmp_path / "run", config)
    workdirs.check_workdir(tmp_path / "run", config)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["model"]["depths"] == [2, 2]
    assert written["data"]["image_size"] == 224
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]


def test_another_config_is_refused_key_by_key(tmp_path):
    workdirs.create_workdir(tmp_path, default_config())
    before = (tmp_path / "config.json").read_bytes()
    config = changed_config(total_epochs=5)
    config.optimizer.learning_rate = 0.5
    config.model.depths = (2, 2)
    with pytest.raises(UserError) as error:
        workdirs.check_workdir(tmp_path, config)
    for part in ("total_epochs: 1 → 5", "optimizer.learning_rate: 0.001 → 0.5", "model.depths: 'unset' → [2, 2]"):
        assert part in str(error.value)
    assert "seed" not in str(error.value)
    assert (tmp_path / "config.json").read_bytes() == before


def test_another_machine_is_no_other_config(tmp_path):
    workdirs.create_workdir(tmp_path, default_config())
    config = default_config()
    config.mesh.fsdp = 4
    config.data.data_dir = "/elsewhere"
    workdirs.check_workdir(tmp_path, config)


def test_a_key_that_came_later_had_its_default(tmp_path):
    workdirs.create_workdir(tmp_path, default_config())
    written = json.loads((tmp_path / "config.json").read_text())
    del written["ema_decay"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    workdirs.check_workdir(tmp_path, default_config())
    with pytest.raises(UserError, match=r"ema_decay: 0\.0 → 0\.9"):
        workdirs.check_workdir(tmp_path, changed_config(ema_decay=0.9))


def test_config_must_be_data():
    config = default_config()
    config.model.norm = lambda: None
    with pytest.raises(UserError, match="pure data"):
        workdirs.config_to_dict(config)


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_damaged_config_json(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        workdirs.check_workdir(tmp_path, default_config())


def test_checkpoints_without_a_config(tmp_path):
    (tmp_path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no config\.json"):
        workdirs.check_workdir(tmp_path, default_config())


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="not a folder"):
        workdirs.check_workdir(tmp_path / "file", default_config())
    with pytest.raises(UserError, match="cannot be written"):
        workdirs.create_workdir(tmp_path / "file" / "run", default_config())
    assert (tmp_path / "file").read_text() == "mine"


HOLDER = """
import os, pathlib, sys, time
from swin_jax.training import workdir
with workdir.lock(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_the_lock_of_another_process_goes_with_it(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"locked\n"
        named = rf"in use by process {holder.pid} on {socket.gethostname()}, since .* one run at a time"
        with pytest.raises(UserError, match=named), workdirs.lock(tmp_path / "run"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with workdirs.lock(tmp_path / "run"):
        assert f"process {os.getpid()} " in (tmp_path / "run" / "run.lock").read_text()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdirs.fcntl, "flock", flock)
    with workdirs.lock(tmp_path):
        pass
    assert "file system without locks" in capsys.readouterr().out


def test_the_lock_follows_no_link(tmp_path):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be written"), workdirs.lock(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (ValueError("RESOURCE_EXHAUSTED: ... [OS error 28: ENOSPC No space left on device]"), "the disk is full"),
    ],
)
def test_lack_of_room_is_one_line(error, reason, tmp_path):
    def write():
        try:
            raise error
        except Exception as first:
            raise RuntimeError("a library's own words") from first

    with pytest.raises(RunError, match=f"cannot be written: {reason}"), workdirs.told_if_full(tmp_path):
        write()
    with pytest.raises(OSError, match="Permission"), workdirs.told_if_full(tmp_path):
        raise OSError(errno.EPERM, "Permission denied")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 0),
        ("batch_size", -8),
        ("total_epochs", 0),
        ("log_every_steps", 0),
        ("ema_decay", 1.0),
        ("seed", -1),
        ("data.image_size", 0),
        ("data.image_size", (16, 16, 3)),
        ("data.image_size", "16"),
        ("optimizer.learning_rate", float("nan")),
    ],
)
def test_values_no_run_can_have(key, value):
    config = default_config()
    group, _, name = key.rpartition(".")
    (config[group] if group else config)[name] = value
    with pytest.raises(UserError, match=key):
        check_config(config)
