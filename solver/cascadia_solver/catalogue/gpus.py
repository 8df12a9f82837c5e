"""What datasheets say about GPUs.

Arithmetic is dense (no structured sparsity), bandwidths are per GPU and one way. Memory is what the
driver reports for the card, which for NVIDIA lies a little below the name's gigabytes.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from cascadia_api.errors import InputError, Problem

__all__ = ["GPUS", "GpuFacts", "custom_gpu", "gpu_facts"]

_MIB = 2**20
_TERA = 1e12
_GIGA = 1e9


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One kind of GPU.

    Attributes:
        name: As in manifests, for example ``H100-SXM-80GB``.
        memory_bytes: Device memory, bytes.
        memory_bandwidth: Bytes/s of HBM or GDDR.
        bf16_flops: Dense bf16 (and fp16) operations/s.
        fp8_flops: Dense fp8 operations/s; 0 where tensor cores have no fp8.
        int8_flops: Dense int8 operations/s.
        link_bandwidth: Bytes/s to the other GPUs of the node, one way (NVLink, xGMI or PCIe).
        network_bandwidth: Bytes/s to other nodes, one way: a property of the server, here that of
            the usual reference design.
        source: The datasheet.
        fp4_flops: Dense 4-bit floating-point operations/s; 0 where tensor cores have no fp4.
    """

    name: str
    memory_bytes: float
    memory_bandwidth: float
    bf16_flops: float
    fp8_flops: float
    int8_flops: float
    link_bandwidth: float
    network_bandwidth: float
    source: str
    fp4_flops: float = 0.0


def _gpu(
    name: str,
    *,
    mebibytes: int,
    memory_gbps: float,
    bf16: float,
    fp8: float,
    int8: float,
    link_gbps: float,
    network_gbps: float,
    source: str,
    fp4: float = 0.0,
) -> GpuFacts:
    """Facts from the datasheet's units: MiB, GB/s and Tera-operations/s."""
    return GpuFacts(
        name=name,
        memory_bytes=float(mebibytes) * _MIB,
        memory_bandwidth=memory_gbps * _GIGA,
        bf16_flops=bf16 * _TERA,
        fp8_flops=fp8 * _TERA,
        int8_flops=int8 * _TERA,
        link_bandwidth=link_gbps * _GIGA,
        network_bandwidth=network_gbps * _GIGA,
        source=source,
        fp4_flops=fp4 * _TERA,
    )


# Network: DGX A100 has one 200 Gb/s adapter per GPU, DGX H100/H200/B200 and MI300X platforms one of
# 400 Gb/s; servers with PCIe cards commonly one of 100 Gb/s per card.
GPUS: dict[str, GpuFacts] = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-SXM-40GB", mebibytes=40960, memory_gbps=1555, bf16=312, fp8=0, int8=624,
             link_gbps=300, network_gbps=25, source="NVIDIA A100 datasheet (NVLink 3, 600 GB/s both ways)"),
        _gpu("A100-SXM-80GB", mebibytes=81920, memory_gbps=2039, bf16=312, fp8=0, int8=624,
             link_gbps=300, network_gbps=25, source="NVIDIA A100 datasheet (NVLink 3, 600 GB/s both ways)"),
        _gpu("H100-PCIe-80GB", mebibytes=81559, memory_gbps=2000, bf16=756.5, fp8=1513, int8=1513,
             link_gbps=64, network_gbps=12.5, source="NVIDIA H100 PCIe product brief (PCIe 5 x16)"),
        _gpu("H100-SXM-80GB", mebibytes=81559, memory_gbps=3350, bf16=989.4, fp8=1978.9, int8=1978.9,
             link_gbps=450, network_gbps=50, source="NVIDIA H100 datasheet (NVLink 4, 900 GB/s both ways)"),
        _gpu("H200-SXM-141GB", mebibytes=143771, memory_gbps=4800, bf16=989.4, fp8=1978.9, int8=1978.9,
             link_gbps=450, network_gbps=50, source="NVIDIA H200 datasheet (NVLink 4, 900 GB/s both ways)"),
        _gpu("B200-SXM-180GB", mebibytes=183359, memory_gbps=7700, bf16=2250, fp8=4500, int8=4500,
             link_gbps=900, network_gbps=50, fp4=9000, source="NVIDIA HGX B200 datasheet (NVLink 5, 1.8 TB/s)"),
        _gpu("L40S-48GB", mebibytes=46068, memory_gbps=864, bf16=362, fp8=733, int8=733,
             link_gbps=32, network_gbps=12.5, source="NVIDIA L40S datasheet (PCIe 4 x16, no NVLink)"),
        _gpu("L4-24GB", mebibytes=23034, memory_gbps=300, bf16=121, fp8=242.5, int8=242.5,
             link_gbps=32, network_gbps=12.5, source="NVIDIA L4 datasheet (PCIe 4 x16, no NVLink)"),
        _gpu("MI300X-192GB", mebibytes=196592, memory_gbps=5300, bf16=1307.4, fp8=2614.9, int8=2614.9,
             link_gbps=448, network_gbps=50, source="AMD Instinct MI300X datasheet (7 xGMI links, 128 GB/s both ways)"),
    )
}  # fmt: skip


_USUAL_NETWORK = 25.0
"""GB/s: one adapter of 200 Gb/s per GPU."""
_MAY_LACK = {"fp8Teraflops", "fp4Teraflops"}
_PLAUSIBLE = {
    "memoryGigabytes": (1, 4096),
    "memoryGigabytesPerSecond": (20, 1_000_000),
    "bf16Teraflops": (5, 1_000_000),
    "fp8Teraflops": (5, 1_000_000),
    "linkGigabytesPerSecond": (2, 100_000),
    "fp4Teraflops": (5, 1_000_000),
}
"""Beyond what any GPU has, or soon will: such numbers are in another unit."""


def custom_gpu(
    name: str,
    *,
    memory_gigabytes: float,
    memory_gigabytes_per_second: float,
    bf16_teraflops: float,
    fp8_teraflops: float,
    link_gigabytes_per_second: float,
    fp4_teraflops: float = 0.0,
) -> GpuFacts:
    """A GPU that is not in the catalogue, from five numbers of its datasheet.

    Args:
        name: What to call it.
        memory_gigabytes: Device memory, 10⁹ bytes.
        memory_gigabytes_per_second: Memory bandwidth.
        bf16_teraflops: Dense 16-bit matrix arithmetic.
        fp8_teraflops: Dense 8-bit matrix arithmetic; 0 if it has none.
        link_gigabytes_per_second: To the other GPUs of the node, one way.
        fp4_teraflops: Dense 4-bit matrix arithmetic; 0 if it has none.

    Raises:
        InputError: For each number that no GPU has (8- and 4-bit arithmetic may be 0).
    """
    numbers = {
        "memoryGigabytes": memory_gigabytes,
        "memoryGigabytesPerSecond": memory_gigabytes_per_second,
        "bf16Teraflops": bf16_teraflops,
        "fp8Teraflops": fp8_teraflops,
        "linkGigabytesPerSecond": link_gigabytes_per_second,
        "fp4Teraflops": fp4_teraflops,
    }
    problems = [
        Problem(field, f"is {number:g}, and must {_bounds(field)}: is it in another unit?")
        for field, number in numbers.items()
        if not (_PLAUSIBLE[field][0] <= number <= _PLAUSIBLE[field][1] or (field in _MAY_LACK and number == 0.0))
    ]
    if problems:
        raise InputError(problems, source=name)
    return GpuFacts(
        name=name,
        memory_bytes=memory_gigabytes * _GIGA,
        memory_bandwidth=memory_gigabytes_per_second * _GIGA,
        bf16_flops=bf16_teraflops * _TERA,
        fp8_flops=fp8_teraflops * _TERA,
        int8_flops=(fp8_teraflops or bf16_teraflops) * _TERA,
        link_bandwidth=link_gigabytes_per_second * _GIGA,
        network_bandwidth=_USUAL_NETWORK * _GIGA,
        source="given",
        fp4_flops=fp4_teraflops * _TERA,
    )


def _bounds(field: str) -> str:
    least, most = _PLAUSIBLE[field]
    return f"{'be 0 or ' if field in _MAY_LACK else ''}lie between {least:,} and {most:,}"


def gpu_facts(name: str) -> GpuFacts:
    """Look up a GPU by name, in any case.

    Raises:
        InputError: If the name is unknown; lists the nearest names.
    """
    by_folded = {known.casefold(): gpu for known, gpu in GPUS.items()}
    gpu = by_folded.get(name.casefold())
    if gpu is not None:
        return gpu
    nearest = difflib.get_close_matches(name.casefold(), by_folded, n=3, cutoff=0.4)
    names = [by_folded[near].name for near in nearest] or list(GPUS)
    raise InputError(f"GPU {name!r} is not in the catalogue; use {', '.join(names)}")
