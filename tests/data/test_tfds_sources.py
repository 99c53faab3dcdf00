"""Data sets of TFDS, prepared by builders of one's own: what is read, and one clear line for every mistake."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from swin_jax.data.pipeline import eval_batches, train_iterator
from swin_jax.data.sources import evaluation_split, make_source
from swin_jax.errors import UserError

TFDS_MODULE = """
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class TinyShapes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
            "id": np.int64,
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(10), "validation": self._generate_examples(4)}
    def _generate_examples(self, count):
        for i in range(count):
            png = io.BytesIO()
            Image.new("RGB", (6, 5), (i, i, i)).save(png, "PNG")
            yield i, {"image": io.BytesIO(png.getvalue()), "label": i % 2, "id": i}

class TinyReal(TinyShapes):  # laid out as imagenet2012_real
    def _info(self):
        label = tfds.features.ClassLabel(num_classes=4)
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "original_label": label,
            "real_label": tfds.features.Sequence(label),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
    def _split_generators(self, dl_manager):
        return {"validation": self._generate_examples(5)}
    def _generate_examples(self, count):
        for i, record in super()._generate_examples(count):
            labels = list(range(min(i, 4)))
            yield i, {"image": record["image"], "original_label": 3, "real_label": labels, "file_name": str(i)}
"""


def first_pixel(record):
    return Image.open(io.BytesIO(record["image"])).getpixel((0, 0))[0]


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A data set prepared by a custom builder, in another process, as a user would have it on disk."""
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "tiny_shapes.py").write_text(TFDS_MODULE)
    prepare = (
        "import tiny_shapes as t\n"
        "for builder in (t.TinyShapes, t.TinyReal):\n"
        "    builder(data_dir='data', file_format='array_record').download_and_prepare()"
    )
    subprocess.run([sys.executable, "-c", prepare], cwd=folder, check=True, capture_output=True)
    return str(folder / "data")


def test_tfds_reads_array_record_without_tensorflow(tfds_dir):
    source = make_source("tfds:tiny_shapes", "train", data_dir=tfds_dir)
    assert (len(source), source.num_classes, source.class_names) == (10, 2, ("even", "odd"))
    assert isinstance(source[0]["image"], bytes)
    values = [first_pixel(record) for record in source]
    assert sorted(values) == list(range(10))
    assert [record["label"] for record in source] == [value % 2 for value in values]
    assert "tensorflow" not in sys.modules
    cut = make_source("tfds:tiny_shapes", "train[:30%]", data_dir=tfds_dir)
    assert [first_pixel(record) for record in cut] == values[:3]


def test_reassessed_labels_are_several_or_none(tfds_dir):
    source = make_source("tfds:tiny_real", evaluation_split("tfds:tiny_real", data_dir=tfds_dir), data_dir=tfds_dir)
    assert (len(source), source.num_classes, source.multi_label) == (5, 4, True)
    assert sorted(record["label"].tolist() for record in source) == [[], [0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    options = {"batch_size": 3, "image_size": 4, "channels": 3, "num_classes": 4, "num_threads": 1}
    batches = list(eval_batches(source, process_index=0, process_count=2, **options))
    (second,) = eval_batches(source, process_index=1, process_count=2, **options)
    labels = np.concatenate([batch["label"][batch["valid"]] for batch in (*batches, second)])
    assert labels.dtype == bool
    assert sorted(labels.sum(-1)) == [0, 1, 2, 3, 4]
    assert not np.any(np.diff(labels.astype(int)) > 0)  # the first few of the four
    (empty,) = eval_batches(source, process_index=5, process_count=6, **options)
    assert (empty["label"].shape, empty["valid"].any()) == ((3, 4), False)
    with pytest.raises(UserError, match="several labels an image"):
        train_iterator(source, seed=0, **options)


def test_which_split_is_for_evaluation(tfds_dir, tmp_path):
    assert evaluation_split("tfds:tiny_shapes", data_dir=tfds_dir) == "validation"
    assert evaluation_split("digits") == "test"
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        (tmp_path / "classes" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "classes" / name)
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "val").symlink_to(tmp_path / "classes")
    everything = make_source(f"folder:{tmp_path / 'classes'}", evaluation_split(f"folder:{tmp_path / 'classes'}"))
    assert sorted(everything.labels) == [0, 0, 1]
    assert evaluation_split(f"folder:{tmp_path / 'splits'}") == "validation"
    with pytest.raises(UserError, match="no split 'all'"):
        make_source(f"folder:{tmp_path / 'splits'}", "all")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("tiny_shapes", "test", "no split 'test', known: train, validation"),
        ("tiny_shape", "train", "knows no data set 'tiny_shape'"),
        ("mnist", "train", "'mnist' is not in .*--file_format=array_record"),
        ("mnist/foo", "train", "cannot open 'mnist/foo'"),
    ],
)
def test_tfds_mistakes_are_told_in_one_line(tfds_dir, name, split, message, caplog):
    with pytest.raises(UserError, match=message) as caught:
        make_source(f"tfds:{name}", split, data_dir=tfds_dir)
    assert "\n" not in str(caught.value)
    assert not caplog.records
