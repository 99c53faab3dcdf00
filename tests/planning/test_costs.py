"""The plan's arithmetic against sums by hand."""

import pytest

from swin_jax.errors import UserError
from swin_jax.planning.chips import CHIPS, Chip, get_chip
from swin_jax.planning.costs import Costs, deviation, extrapolate, pace

CHIP = Chip(
    name="toy",
    flops=100.0,
    memory_bytes=1000.0,
    memory_bytes_per_second=50.0,
    domain=4,
    link_bytes_per_second=20.0,
    network_bytes_per_second=3.0,
    source="",
)


def costs(scale=1.0, **changes):
    wire = {("all-gather", (0, 1, 2, 3)): 40.0 * scale, ("all-reduce", (0, 4)): 6.0}
    given = dict(
        state_bytes=300.0, batch_bytes=8.0, temporary_bytes=70.0 * scale, flops=200.0 * scale,
        memory_traffic_bytes=500.0, wire=wire,
    )  # fmt: skip
    return Costs(**(given | changes))


@pytest.mark.parametrize(
    ("group", "rate"),
    [
        ((0, 1, 2, 3), 20.0),  # within a domain
        ((4, 7), 20.0),
        ((0, 4), 3.0),  # one chip of each of two: one part of the network
        ((0, 1, 4, 5), 6.0),
        (tuple(range(8)), 12.0),
    ],
)
def test_the_rate_of_a_ring(group, rate):
    assert CHIP.wire_bytes_per_second(group) == rate


def test_a_ring_is_no_faster_than_its_links():
    chip = CHIPS["h100"]
    assert chip.wire_bytes_per_second(tuple(range(16))) == 400e9  # eight adapters of 50 GB/s
    assert chip.wire_bytes_per_second((0, 8, 16)) == 50e9
    assert chip.wire_bytes_per_second((0, 7)) == 450e9
    assert CHIPS["tpu_v5p"].wire_bytes_per_second(tuple(range(4096))) == 200e9


def test_pace_by_hand():
    """200 FLOP at half of 100 FLOP/s: 4 s; 40 bytes at 20 and 6 at 3: 4 s; 160 of the 200 FLOP are the model's."""
    found = pace(costs(), CHIP, model_flops=160.0, share_of_peak=0.5)
    assert (found.chip_seconds, found.wire_seconds, found.memory_seconds) == (4.0, 4.0, 10.0)
    assert (found.fastest, found.slowest) == (4.0, 8.0)
    assert found.scaling_efficiency == (0.5, 1.0)
    assert found.model_flops_utilization == (0.2, 0.4)  # 160 FLOP in 8 s or in 4 s, of 100 FLOP/s


def test_a_line_through_two_depths():
    found = extrapolate(costs(1.0), costs(1.5), depths=(2, 4), depth=10)
    assert found.temporary_bytes == 70 + 4 * 35
    assert found.flops == 200 + 4 * 100
    assert found.wire == {("all-gather", (0, 1, 2, 3)): 40 + 4 * 20, ("all-reduce", (0, 4)): 6.0}
    assert found.memory_bytes == 300 + 8 + 210
    assert found.wire_bytes == 126.0


def test_a_collective_of_the_deeper_program_alone_is_on_the_line_too():
    found = extrapolate(costs(wire={}), costs(wire={("all-to-all", (0, 1)): 5.0}), depths=(2, 3), depth=5)
    assert found.wire == {("all-to-all", (0, 1)): 15.0}


def test_deviation_is_of_what_was_found():
    assert deviation(costs(1.0), costs(2.0)) == {
        "temporary_bytes": 0.5,
        "flops": 0.5,
        "wire_bytes": pytest.approx(40 / 86),
    }


def test_unknown_chip():
    with pytest.raises(UserError, match=r"unknown chip 'tpu_v5', .* did you mean 'tpu_v5p'"):
        get_chip("tpu_v5")
