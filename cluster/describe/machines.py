"""Machines of the clouds by accelerator, with rough prices.

Prices are list prices on demand in US dollars as of autumn 2025, from memory of the public price lists,
for a first estimate only: `price_per_hour` of a group replaces them. A spot machine is taken at 40%.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.describe.config import ClusterConfig, GroupConfig, HeadConfig
from logitstore.common.config_file import ConfigError

SPOT_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    cores: int
    memory_gb: int
    price_per_hour: float
    """USD, on demand."""
    gpu_type: str = ""
    """The cloud's name of the accelerator where it must be asked for apart from the machine."""


AWS_GPU: dict[tuple[str, int], Machine] = {
    ("T4", 1): Machine("g4dn.xlarge", 4, 16, 0.53),
    ("T4", 4): Machine("g4dn.12xlarge", 48, 192, 3.91),
    ("A10G", 1): Machine("g5.xlarge", 4, 16, 1.01),
    ("A10G", 4): Machine("g5.12xlarge", 48, 192, 5.67),
    ("A10G", 8): Machine("g5.48xlarge", 192, 768, 16.29),
    ("L4", 1): Machine("g6.xlarge", 4, 16, 0.80),
    ("L4", 4): Machine("g6.12xlarge", 48, 192, 4.60),
    ("L4", 8): Machine("g6.48xlarge", 192, 768, 13.35),
    ("L40S", 1): Machine("g6e.xlarge", 4, 32, 1.86),
    ("L40S", 4): Machine("g6e.12xlarge", 48, 384, 10.49),
    ("L40S", 8): Machine("g6e.48xlarge", 192, 1536, 30.13),
    ("A100-40GB", 8): Machine("p4d.24xlarge", 96, 1152, 21.96),
    ("A100-80GB", 8): Machine("p4de.24xlarge", 96, 1152, 27.45),
    ("H100", 1): Machine("p5.4xlarge", 16, 256, 6.88),
    ("H100", 8): Machine("p5.48xlarge", 192, 2048, 55.04),
    ("H200", 8): Machine("p5en.48xlarge", 192, 2048, 63.30),
}
AWS_CPU = (
    Machine("m7i.large", 2, 8, 0.10),
    Machine("m7i.xlarge", 4, 16, 0.20),
    Machine("m7i.2xlarge", 8, 32, 0.40),
    Machine("m7i.4xlarge", 16, 64, 0.81),
    Machine("m7i.8xlarge", 32, 128, 1.61),
    Machine("m7i.16xlarge", 64, 256, 3.23),
)
GCP_GPU: dict[tuple[str, int], Machine] = {
    ("T4", 1): Machine("n1-standard-4", 4, 15, 0.54, "nvidia-tesla-t4"),
    ("L4", 1): Machine("g2-standard-4", 4, 16, 0.71),
    ("L4", 2): Machine("g2-standard-24", 24, 96, 2.00),
    ("L4", 4): Machine("g2-standard-48", 48, 192, 4.00),
    ("L4", 8): Machine("g2-standard-96", 96, 384, 8.00),
    ("A100-40GB", 1): Machine("a2-highgpu-1g", 12, 85, 3.67),
    ("A100-40GB", 2): Machine("a2-highgpu-2g", 24, 170, 7.35),
    ("A100-40GB", 4): Machine("a2-highgpu-4g", 48, 340, 14.69),
    ("A100-40GB", 8): Machine("a2-highgpu-8g", 96, 680, 29.39),
    ("A100-80GB", 1): Machine("a2-ultragpu-1g", 12, 170, 5.07),
    ("A100-80GB", 2): Machine("a2-ultragpu-2g", 24, 340, 10.14),
    ("A100-80GB", 4): Machine("a2-ultragpu-4g", 48, 680, 20.28),
    ("A100-80GB", 8): Machine("a2-ultragpu-8g", 96, 1360, 40.55),
    ("H100", 8): Machine("a3-highgpu-8g", 208, 1872, 88.25),
}
GCP_CPU = (
    Machine("n2-standard-2", 2, 8, 0.10),
    Machine("n2-standard-4", 4, 16, 0.19),
    Machine("n2-standard-8", 8, 32, 0.39),
    Machine("n2-standard-16", 16, 64, 0.78),
    Machine("n2-standard-32", 32, 128, 1.55),
    Machine("n2-standard-64", 64, 256, 3.11),
)
CATALOGS = {"aws": (AWS_GPU, AWS_CPU), "gcp": (GCP_GPU, GCP_CPU)}


def machine_for(wanted: GroupConfig | HeadConfig, cloud: str) -> Machine:
    """The machine named, else the one with the accelerators, else the smallest with the cores and memory.

    Raises:
        ConfigError: the cloud has none such in this list.
    """
    gpu_machines, cpu_machines = CATALOGS[cloud]
    accelerator = (wanted.accelerator, wanted.gpus) if isinstance(wanted, GroupConfig) else ("", 0)
    everything = [*gpu_machines.values(), *cpu_machines]
    if wanted.machine:
        known = next((machine for machine in everything if machine.name == wanted.machine), None)
        return known or Machine(wanted.machine, wanted.cores, wanted.memory_gb, wanted.price_per_hour or 0.0)
    if accelerator[1]:
        found = gpu_machines.get(accelerator)
        if found is None:
            known_ones = ", ".join(f"{count} x {name}" for name, count in gpu_machines)
            raise ConfigError(
                f"no {cloud} machine with {accelerator[1]} x {accelerator[0]!r} is known here; known are "
                f"{known_ones}: choose one of them, or set `machine` (and `price_per_hour`)"
            )
        return found
    for machine in cpu_machines:
        if machine.cores >= wanted.cores and machine.memory_gb >= wanted.memory_gb:
            return machine
    raise ConfigError(
        f"no {cloud} machine with {wanted.cores} cores and {wanted.memory_gb} GB is known here; set `machine`"
    )


def price_lines(cluster: ClusterConfig, cloud: str | None, *, head: bool = True) -> list[str]:
    """What the cluster costs an hour, group by group and in all.

    `cloud` None is a place whose prices are not known: what AWS asks for such machines stands in. Without
    `head`, the head runs on one of the group's machines.
    """
    lines, total, unknown = [], 0.0, False
    parts: list[tuple[str, HeadConfig | GroupConfig, int, bool]] = [("head", cluster.head, 1, False)]
    parts += [(group.name, group, group.count, group.spot) for group in cluster.groups]
    for name, part, count, spot in parts if head else parts[1:]:
        price, source = part.price_per_hour, ""
        if price is None:
            price = _list_price(part, cloud or "aws") * (SPOT_SHARE if spot else 1)
            source = "" if cloud else " at AWS's price; set price_per_hour"
        if not price and part.price_per_hour is None:
            lines.append(f"{name}: {count} machines, price unknown (set price_per_hour)")
            unknown = True
            continue
        total += price * count
        kind = " spot" if spot else ""
        lines.append(
            f"{name}: {count}{kind} x {price:.2f} = {price * count:.2f} {cluster.currency}/h{source}"
        )
    if total or not unknown:
        at_least = "at least " if unknown else ""
        lines.append(f"in all, with every machine up: {at_least}{total:.2f} {cluster.currency}/h (rough)")
    return lines


def _list_price(wanted: GroupConfig | HeadConfig, cloud: str) -> float:
    """Dollars an hour on demand; 0 where none is known."""
    try:
        return machine_for(wanted, cloud).price_per_hour
    except ConfigError:
        return 0.0
