import dataclasses
import logging
import pathlib
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.errors import UserError
from swin_jax.training.checkpoint import Checkpoints, _fingerprint
from tests.training.conftest import Setup


def make_iterator():
    return iter(grain.MapDataset.range(50).seed(1).shuffle().repeat().batch(4).to_iter_dataset())


def save_steps(checkpoints, setup, accuracies, state=None):
    state, iterator = state or setup.init(), make_iterator()
    for number, accuracy in enumerate(accuracies):
        next(iterator)
        state, _ = setup.train_step(state, setup.batch(number), 0)
        metrics = None if accuracy is None else {"accuracy": accuracy}
        checkpoints.save(state, iterator, metrics=metrics, record={"number": number})
    return state, iterator


@pytest.fixture(scope="module")
def saved(setup, tmp_path_factory):
    """A folder with the steps 1, 2, 3; the last state on the host; the batch that follows it."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoints = Checkpoints(folder, keep=3)
    state, iterator = save_steps(checkpoints, setup, [0.1, 0.3, 0.2])
    checkpoints.close()
    return folder, jax.device_get(state), next(iterator)


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def assert_equal(state, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), expected)


def test_restores_what_was_saved(saved, setup):
    folder, expected, next_batch = saved
    checkpoints, iterator = Checkpoints(folder, keep=3, read_only=True), make_iterator()
    restored = checkpoints.restore(setup.target, iterator)
    assert_equal(restored.state, expected)
    assert (restored.metrics, restored.record) == ({"accuracy": 0.2}, {"number": 2})
    np.testing.assert_array_equal(next(iterator), next_batch)
    assert int(checkpoints.restore(setup.target, which="best").state.step) == 2
    assert int(checkpoints.restore(setup.target, which="1").state.step) == 1
    for which in ("4", "newest"):
        with pytest.raises(UserError, match="latest, best or one of"):
            checkpoints.restore(setup.target, which=which)


@pytest.mark.parametrize(("num_devices", "axes"), [(8, {}), (4, {"fsdp": 2}), (8, {"fsdp": 4, "tensor": 2})])
def test_restores_on_another_mesh(num_devices, axes, saved):
    other = Setup(num_devices, ema_decay=0.9, **axes)
    restored = Checkpoints(saved[0], read_only=True).restore(other.target)
    assert_equal(restored.state, saved[1])
    kernel = restored.state.params["blocks"]["0"]["kernel"]
    assert kernel.sharding == other.target.params["blocks"]["0"]["kernel"].sharding


def test_nothing_to_restore(tmp_path, setup):
    assert Checkpoints(tmp_path / "checkpoints").restore(setup.target) is None


def test_keeps_the_newest_and_the_best(tmp_path, setup):
    checkpoints = Checkpoints(tmp_path, keep=2)
    save_steps(checkpoints, setup, [0.1, 0.9, None, 0.3, None, 0.2])
    checkpoints.close()
    assert checkpoints.steps() == [2, 5, 6]
    assert Checkpoints(tmp_path, read_only=True).best_step() == 2


def damages(folder):
    """Yield (name, file, function that damages the file) over all files of a step."""
    rng = np.random.default_rng(0)

    def flip(path, byte, bit):
        content = bytearray(path.read_bytes())
        content[byte] ^= 1 << bit
        path.write_bytes(content)

    def truncate(path):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    for number, path in enumerate(files):
        name, size = path.relative_to(folder), path.stat().st_size
        has_arrays = size > 4000 and path.parent.name == "d"
        for byte in rng.integers(size, size=5 if has_arrays else int(number % 3 == 0)):
            bit = int(rng.integers(8))
            yield f"flip {name} {byte}.{bit}", name, lambda file, byte=byte, bit=bit: flip(file, byte, bit)
        if has_arrays or number % 3 == 1:
            yield f"truncate {name}", name, truncate
        if has_arrays or number % 3 == 2:
            yield f"delete {name}", name, pathlib.Path.unlink


def test_no_damage_restores_silently_wrong(tmp_path, caplog, capfd):
    """Whatever happens to a file, either the values are the saved ones or the step before is used, with a warning."""
    caplog.set_level(logging.WARNING, logger="swin_jax")
    setup, original, folder = Setup(), tmp_path / "original", tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(original, keep=2)
    before, _ = save_steps(checkpoints, setup, [0.1])
    expected = {1: jax.tree.map(np.array, before)}
    after, _ = setup.train_step(before, setup.batch(), 0)
    checkpoints.save(after, make_iterator(), metrics={"accuracy": 0.2}, record={"number": 1})
    checkpoints.close()
    expected[2] = jax.device_get(after)
    fallbacks = []
    for name, file, damage in damages(original / "2"):
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(original, folder)
        damage(folder / "2" / file)
        caplog.clear()
        checkpoints = Checkpoints(folder, keep=2)
        restored = checkpoints.restore(setup.target, make_iterator())
        checkpoints.close()
        step = int(restored.state.step)
        assert_equal(restored.state, expected[step])
        assert restored.record == {"number": step - 1}, name
        if step == 1:
            fallbacks.append(name)
            (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("swin_jax")]
            assert "step 2" in message, name
            assert "\n" not in message, name
            assert [path.name for path in (folder.parent / "damaged_checkpoints").iterdir()] == ["2-0"]
    assert len(fallbacks) > 10
    assert any("flip state/ocdbt" in name for name in fallbacks)
    assert "Traceback" not in capfd.readouterr().err


def test_damaged_step_can_be_saved_again(copy, saved, setup):
    (copy / "3" / "meta" / "metadata").write_text("{}")
    checkpoints, iterator = Checkpoints(copy, keep=3), make_iterator()
    restored = checkpoints.restore(setup.target, iterator)
    next(iterator)
    state, _ = setup.train_step(restored.state, setup.batch(2), 0)
    checkpoints.save(state, iterator, metrics={"accuracy": 0.2})
    checkpoints.close()
    assert_equal(Checkpoints(copy).restore(setup.target).state, saved[1])


def test_no_step_verifies(copy, setup):
    for step in (1, 2, 3):
        shutil.rmtree(copy / str(step) / "state")
    with pytest.raises(UserError, match=r"no usable checkpoint .* step 3: .* step 1: "):
        Checkpoints(copy).restore(setup.target)
    assert sorted(path.name for path in copy.iterdir()) == ["1", "2", "3"]


def test_asked_step_has_no_substitute(copy, setup):
    shutil.rmtree(copy / "2" / "state")
    with pytest.raises(UserError, match="step 2"):
        Checkpoints(copy, read_only=True).restore(setup.target, which="best")


def test_another_model_does_not_fit(saved):
    with pytest.raises(UserError, match="no usable checkpoint"):
        Checkpoints(saved[0], read_only=True).restore(Setup(1).target)


def test_save_before_donation_keeps_the_values(tmp_path, setup):
    state, iterator = setup.init(), make_iterator()
    checkpoints = Checkpoints(tmp_path, keep=1)
    expected = jax.tree.map(np.array, state)
    checkpoints.save(state, iterator)
    for number in range(5):
        state, _ = setup.train_step(state, setup.batch(number), 0)
    checkpoints.close()
    assert_equal(Checkpoints(tmp_path).restore(setup.target).state, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32"])
def test_fingerprint_sees_every_bit(dtype):
    rng = np.random.default_rng(0)
    size = jnp.dtype(dtype).itemsize
    content = rng.integers(0, 256, 15 * size, np.uint8)
    fingerprint = jax.jit(_fingerprint)

    def of(content):
        return int(fingerprint(jnp.asarray(content.view(jnp.dtype(dtype)).reshape(3, 5))))

    seen = {of(content)}
    for bit in range(len(content) * 8):
        flipped = content.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(of(flipped))
    swapped = content.reshape(15, size)[::-1].reshape(-1).copy()
    assert len(seen | {of(swapped)}) == len(content) * 8 + 2


def test_fingerprints_of_bool_and_scalar():
    assert int(_fingerprint(jnp.array([True, False]))) != int(_fingerprint(jnp.array([False, True])))
    assert int(_fingerprint(jnp.int32(1))) != int(_fingerprint(jnp.int32(2)))


def test_step_of_another_run_is_noticed(copy, setup):
    (copy / "3").rename(copy / "7")
    restored = Checkpoints(copy).restore(setup.target)
    assert int(restored.state.step) == 2
    assert dataclasses.is_dataclass(restored)
