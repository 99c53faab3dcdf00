import json
import sys

import pytest
from absl import flags

from swin_jax.commands import RESTART, Ended, config_from_json, load_config, parse_value, run_command
from swin_jax.errors import RunError, UserError
from swin_jax.training.workdir import config_to_dict

CONFIG = """
from swin_jax.training.default_config import default_config

def get_config():
    config = default_config()
    config.total_epochs = 3
    config.model.depths = (2, 2)
    {line}
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    def write(line="pass", text=CONFIG):
        path = tmp_path / "config.py"
        path.write_text(text.format(line=line))
        return str(path)

    return write


def make_flags():
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "The config.", flag_values=values)
    flags.DEFINE_string("workdir", None, "The folder.", flag_values=values)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)
    return values


def run(arguments, main, capsys):
    with pytest.raises(SystemExit) as exit_info:
        run_command(main, make_flags(), ["train.py", *arguments])
    captured = capsys.readouterr()
    return exit_info.value.code, captured.out, captured.err


def load(flag_values, overrides):
    return config_to_dict(load_config(flag_values.config, overrides))


def test_overrides_reach_the_config(config_file, capsys):
    arguments = [
        f"--config={config_file()}",
        "--workdir=x",
        "--config.total_epochs=5",
        "--config.optimizer.learning_rate=1",
        "-config.data.source=folder:/a=b",
        "--config.data.flip=True",
        "--config.data.image_size=(32, 64)",
        "--config.data.crop_scale=(0.5, 1)",
        "--config.model.depths=(1,)",
        "--config.model.drop_path_rate",
        "0.3",
        "--config.model.attention=my_module:MyAttention",
    ]
    code, out, err = run(arguments, load, capsys)
    assert (code, err) == (0, "")
    config = json.loads(out.splitlines()[-1])
    assert config["total_epochs"] == 5
    assert config["optimizer"]["learning_rate"] == 1.0
    assert config["data"]["source"] == "folder:/a=b"
    assert config["data"]["flip"] is True
    assert config["data"]["image_size"] == [32, 64]
    assert config["data"]["crop_scale"] == [0.5, 1]
    assert config["model"] == {
        "name": "swin",
        "depths": [1],
        "drop_path_rate": 0.3,
        "attention": "my_module:MyAttention",
    }


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("--config.total_epoch=3", "unknown config key 'total_epoch'; did you mean 'total_epochs'?"),
        ("--config.optimiser.learning_rate=3", "did you mean 'optimizer"),
        ("--config.learning_rate=3", "did you mean 'optimizer.learning_rate'?"),
        ("--config.data.batchsize=3", "unknown config key 'data.batchsize'"),
        ("--config.total_epochs=abc", "'total_epochs' takes a whole number, not 'abc'"),
        ("--config.total_epochs=2.5", "'total_epochs' takes a whole number, not 2.5"),
        ("--config.total_epochs=true", "'total_epochs' takes a whole number, not True"),
        ("--config.total_epochs=", "'total_epochs' takes a whole number, not ''"),
        ("--config.total_epochs", "'total_epochs' takes a whole number, not ''"),
        ("--config.data.flip=1", "'data.flip' takes true or false, not 1"),
        ("--config.data.crop_scale=0.5", "'data.crop_scale' takes a tuple, not 0.5"),
        ("--config.mesh=3", "'mesh' takes keys of its own, not 3"),
        ("--config.mesh.data.x=3", "'data' has no keys of its own"),
        ("--config.seed=None", "'seed' takes a whole number, not None"),
        ("--wrokdir=x", "Unknown command line flag 'wrokdir'"),
        ("stray", "unexpected argument 'stray'"),
        ("--config=/nowhere.py", "there is no config file /nowhere.py"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(argument, named, config_file, capsys):
    code, out, err = run([f"--config={config_file()}", "--workdir=x", argument], load, capsys)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("config.total_epoch = 3", "line 8: unknown config key 'total_epoch'; did you mean 'total_epochs'?"),
        ("config.data.sorce = 'x'", "line 8: unknown config key 'sorce'; did you mean 'data.source'?"),
        ("config.total_epochs = 'many'", "line 8: TypeError"),
        ("1 / 0", "line 8: ZeroDivisionError: division by zero"),
        ("import no_such_module", "line 8: ModuleNotFoundError"),
        ("{}['x']", "line 8: KeyError('x')"),
        ("config.model.norm = 'x' 'y' z", "SyntaxError"),
        ("return 3", "returns int, not a ConfigDict"),
        ("return default_config().data", "unknown config key"),
    ],
)
def test_mistakes_in_a_config_file_are_one_line(line, named, config_file, capsys):
    code, out, err = run([f"--config={config_file(line)}", "--workdir=x"], load, capsys)
    assert (code, out) == (2, "")
    assert named in err
    assert len(err.splitlines()) == 1


SHARING = """
from configs.shared_here import EPOCHS
from swin_jax.training.default_config import default_config

def get_config():
    config = default_config()
    config.total_epochs = EPOCHS
    return config
"""


def test_a_config_file_imports_what_its_folder_shares_from_anywhere_and_anew(tmp_path, monkeypatch):
    folders = [tmp_path / name / "configs" for name in ("one", "two")]
    monkeypatch.chdir(tmp_path)
    for epochs, folder in enumerate(folders, start=3):
        (folder / "mine").mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "shared_here.py").write_text(f"EPOCHS = {epochs}")
        (folder / "mine" / "run.py").write_text(SHARING)
    searched = list(sys.path)
    assert [load_config(str(folder / "mine" / "run.py")).total_epochs for folder in folders] == [3, 4]
    assert sys.path == searched


def test_a_config_file_that_was_moved_finds_the_recipes_and_misses_others_in_one_line(config_file, tmp_path, capsys):
    text = "from configs.imagenet import recipes\ndef get_config():\n    return recipes.deit('deit_tiny_patch16_224')\n"
    assert load_config(config_file(text=text)).model.name == "deit_tiny_patch16_224"
    path = tmp_path / "moved.py"
    path.write_text(SHARING)
    code, out, err = run([f"--config={path}", "--workdir=x"], load, capsys)
    assert (code, out) == (2, "")
    assert err == f"error: config file {path}, line 2: ModuleNotFoundError: No module named 'configs.shared_here'\n"


def test_config_file_without_get_config(config_file):
    with pytest.raises(UserError, match="no function get_config"):
        load_config(config_file(text="config = 1"))


def test_config_file_need_not_start_from_the_defaults(config_file):
    text = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({{'mesh': {{'fsdp': 2}}}})\n"
    config = load_config(config_file(text=text))
    assert (config.mesh.fsdp, config.mesh.data, config.total_epochs) == (2, -1, 1)


def test_missing_flags(capsys):
    code, _, err = run(["--config=x"], load, capsys)
    assert (code, err) == (2, "error: --workdir=... is missing\n")


def test_help(capsys):
    code, out, err = run(["--help"], load, capsys)
    assert (code, err) == (0, "")
    assert "--workdir" in out


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (UserError("two\nlines"), 2, "error: two lines"),
        (FloatingPointError("diverged"), 1, "error: diverged"),
        (RunError("the disk\nis full"), 1, "error: the disk is full"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
    ],
)
def test_exit_codes(error, code, last_line, capsys):
    def main(flag_values, overrides):
        raise error

    found, _, err = run(["--config=x", "--workdir=y"], main, capsys)
    assert found == code
    assert err.splitlines()[-1] == last_line
    assert ("Traceback" in err) == isinstance(error, RuntimeError)


def test_a_command_may_end_with_a_code_of_its_own(capsys):
    arguments = ["--config=x", "--workdir=y"]
    assert run(arguments, lambda *_: Ended({"step": 3}, RESTART), capsys) == (75, '{"step": 3}\n', "")
    assert run(arguments, lambda *_: Ended(None, RESTART), capsys) == (75, "", "")


def test_config_json_is_the_config(config_file):
    config = load_config(config_file("config.data.image_size = (8, 16)"))
    assert config_from_json(config_to_dict(config)).to_dict() == config.to_dict()


def test_values_of_overrides():
    assert parse_value("3", "a string") == "3"
    assert parse_value("false", True) is False
    assert parse_value("(1, 2)", (0,)) == (1, 2)
    assert parse_value("swin", None) == "swin"
