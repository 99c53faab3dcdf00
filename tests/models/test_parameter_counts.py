"""Every preset has the published model's parameters, to the last one."""

import jax
import pytest
from flax import nnx

from swin_jax.models import create_model, list_models
from tests.models.published_parameter_counts import PUBLISHED_PARAMETER_COUNTS


@pytest.mark.parametrize("name", list_models())
def test_count_equals_the_published_models(name):
    model = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0)))
    count = sum(param.size for param in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == PUBLISHED_PARAMETER_COUNTS[name]
