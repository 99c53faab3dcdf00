"""Bytes on the wire from HLO text, against sums by hand; the lines are of XLA for CPU and for TPU."""

import pytest

from swin_jax.planning.collectives import Collective, read_collectives, type_bytes

LOOP = """HloModule jit_step, is_scheduled=true

FileNames
1 "step.py"

StackFrames
12 {file_location_id=3 parent_frame_id=2}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%body (carry: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %all-gather.1 = f32[8,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
}

%condition (carry: (s32[], f32[8,4])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %while.1 = (s32[], f32[8,4]{1,0}) while(%t), condition=%condition, body=%body, backend_config={TRIPS}
  %all-reduce.2 = (f32[6]{0}, bf16[2,3]{1,0:T(8,128)(2,1)}) all-reduce(%a), replica_groups={{0,2},{1,3}}, to_apply=%add
  %sum = f32[] reduce(%c, %zero), dimensions={0}, to_apply=%add
  %alone = f32[6]{0} all-reduce(%a), replica_groups={{0},{1},{2},{3}}, to_apply=%add
}
"""


def in_main(line):
    return f"ENTRY %main (p: f32[8]) -> f32[8] {{\n  {line}\n}}\n"


def only(line):
    (found,) = read_collectives(in_main(line))
    return found


def test_a_loop_counts_as_often_as_it_turns():
    gather, reduce = read_collectives(LOOP.replace("{TRIPS}", '{"known_trip_count":{"n":"3"}}'))
    assert gather == Collective("all-gather", 8 * 4 * 4, (0, 1, 2, 3), 3)
    assert gather.sent_bytes == 3 * 96  # each device sends three quarters of the 128 bytes
    assert reduce == Collective("all-reduce", 6 * 4 + 6 * 2, (0, 2), 1)
    assert reduce.sent_bytes == 36  # of two devices: half of it to add up, half of it to spread


def test_a_loop_of_unknown_length_is_no_guess():
    with pytest.raises(ValueError, match="unknown length"):
        read_collectives(LOOP.replace("{TRIPS}", "{}"))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("replica_groups={{0,4},{1,5}}", (0, 4)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", (0, 4)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([2,2,2]T(1,0,2)) {'b'}", (0, 2)),
    ],
)
def test_every_way_to_write_groups(groups, expected):
    assert only(f"%g = f32[16]{{0}} all-gather(%x), channel_id=5, {groups}, dimensions={{0}}").group == expected


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        ("%r = f32[2]{0} reduce-scatter(%x), replica_groups=[1,4]<=[4], dimensions={0}, to_apply=%add", 3 * 8),
        ("%r = bf16[8,4]{1,0} all-to-all(%x), replica_groups=[1,8]<=[8], dimensions={0}", 64 * 7 / 8),
        ("%p = u8[100]{0} collective-permute(%x), source_target_pairs={{0,0},{1,3}}", 100),
        ("%s = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}", 24),
        ("%s = ((f32[2], f32[1]), (f32[8], f32[4])) all-gather-start(%x, %y), replica_groups=[1,4]<=[4]", 36),
        ("%s = f32[8]{0} all-reduce-start(%x), replica_groups=[1,4]<=[4], to_apply=%add", 48),
        ("%s = (f32[9], f32[9], u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}", 36),
    ],
)
def test_bytes_that_a_device_sends(line, sent):
    assert only(line).sent_bytes == sent


def test_what_is_none_and_what_is_unknown():
    assert read_collectives(in_main("%d = f32[8]{0} all-gather-done(%s)")) == []
    assert read_collectives(in_main("%p = u8[9]{0} collective-permute(%x), source_target_pairs={{0,0},{1,1}}")) == []
    for line in ("%r = f32[8] ragged-all-to-all(%x)", "%g = f32[8] all-gather(%x), replica_groups=@later"):
        with pytest.raises(ValueError, match=r"unknown collective|cannot be read"):
            read_collectives(in_main(line))


def test_bytes_of_types():
    assert type_bytes("(f32[2,3]{1,0}, pred[5], s4[3], f8e4m3fn[7], bf16[])") == 24 + 5 + 2 + 7 + 2
