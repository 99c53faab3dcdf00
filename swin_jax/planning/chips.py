"""What a chip can do, as its maker states it: peaks, which nothing reaches."""

from dataclasses import dataclass

from swin_jax.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Chip:
    """Rates are a second and of one chip, those of links in one direction."""

    name: str
    flops: float  # dense, bfloat16
    memory_bytes: float
    memory_bytes_per_second: float
    domain: int  # chips that the fast links join
    link_bytes_per_second: float  # that a ring of them can use
    network_bytes_per_second: float  # of a chip's share of the network between domains
    source: str

    def wire_bytes_per_second(self, group: tuple[int, ...]) -> float:
        """Return at what rate a chip sends in a ring of these chips, numbered so that a domain's follow one another.

        Of a ring over several domains the slowest stretch is between two of them; the chips of the group that share a
        domain share the work there, each with its own part of the network.
        """
        domains = {chip // self.domain for chip in group}
        if len(domains) == 1:
            return self.link_bytes_per_second
        return min(self.link_bytes_per_second, len(group) / len(domains) * self.network_bytes_per_second)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="tpu_v5p",
            flops=459e12,
            memory_bytes=95 * 2**30,
            memory_bytes_per_second=2765e9,
            domain=8960,
            # 1200 GB/s in both directions over six links: 100 each way. A ring has the two of one axis of the torus.
            link_bytes_per_second=200e9,
            network_bytes_per_second=50e9 / 8,
            source="https://docs.cloud.google.com/tpu/docs/v5p",
        ),
        Chip(
            name="h100",
            flops=989e12,
            memory_bytes=80e9,
            memory_bytes_per_second=3.35e12,
            domain=8,
            link_bytes_per_second=450e9,  # NVLink's 900 GB/s are both directions
            network_bytes_per_second=400e9 / 8,  # eight 400 Gb/s adapters to a DGX H100's eight
            source="NVIDIA's data sheets of H100 SXM and DGX H100",
        ),
    )
}

# Slices of TPU v5p as Google lists them, by their chips.
TPU_V5P_SLICES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}


def get_chip(name: str) -> Chip:
    """Return the chip of this name. Raises UserError for an unknown one."""
    if name not in CHIPS:
        raise UserError(f"unknown chip {name!r}, known: {', '.join(CHIPS)}{did_you_mean(name, CHIPS)}")
    return CHIPS[name]
