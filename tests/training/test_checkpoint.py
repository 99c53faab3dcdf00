import dataclasses
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swin_jax.errors import UserError
from swin_jax.training.checkpoint import Checkpoints
from swin_jax.training.fingerprints import fingerprint, host_fingerprint
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


def test_rotation_keeps_the_newest_and_the_best(tmp_path, setup):
    checkpoints = Checkpoints(tmp_path, keep=2)
    state, _ = save_steps(checkpoints, setup, [0.1, 0.9, None, 0.3, None, 0.2])
    checkpoints.close()
    assert checkpoints.steps() == [2, 5, 6]
    again = Checkpoints(tmp_path, keep=1)  # as after a restart: the best one is known from the disk
    assert again.best_step() == 2
    save_steps(again, setup, [0.5, None, 0.4], state)
    again.close()
    assert again.steps() == [2, 9]
    assert Checkpoints(tmp_path, read_only=True).best_step() == 2


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
    compiled = jax.jit(fingerprint)

    def of(content):
        array = content.view(jnp.dtype(dtype)).reshape(3, 5)
        found = int(compiled(jnp.asarray(array)))
        assert host_fingerprint(array) == found
        return found

    seen = {of(content)}
    for bit in range(len(content) * 8):
        flipped = content.copy()
        flipped[bit // 8] ^= 1 << bit % 8
        seen.add(of(flipped))
    swapped = content.reshape(15, size)[::-1].reshape(-1).copy()
    assert len(seen | {of(swapped)}) == len(content) * 8 + 2


def test_fingerprints_of_bool_and_scalar():
    assert int(fingerprint(jnp.array([True, False]))) != int(fingerprint(jnp.array([False, True])))
    assert int(fingerprint(jnp.int32(1))) != int(fingerprint(jnp.int32(2)))
    for array in (np.array([True, False, True]), np.array(7, np.int32), np.zeros((0, 3), np.float32)):
        assert int(fingerprint(jnp.asarray(array))) == host_fingerprint(array)
    values = np.arange(30, dtype=np.float32).reshape(5, 6)
    assert host_fingerprint(values.T) == int(fingerprint(jnp.asarray(values.T)))  # not in C order


def test_fingerprint_in_blocks(monkeypatch):
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    whole = host_fingerprint(values)
    monkeypatch.setattr("swin_jax.training.fingerprints.BLOCK", 7)
    assert host_fingerprint(values) == whole


def test_step_of_another_run_is_noticed(copy, setup):
    (copy / "3").rename(copy / "7")
    restored = Checkpoints(copy).restore(setup.target)
    assert int(restored.state.step) == 2
    assert dataclasses.is_dataclass(restored)
