"""Machines of the clouds by accelerator, with rough prices.

They stand in `machines.json`, with their date and where they are from: a first estimate only. `--prices FILE`
and `price_per_hour` of a group replace them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from cluster.describe.settings.cluster import ClusterConfig, GroupConfig, HeadConfig
from cluster.describe.settings.places import GcpConfig
from logitstore.common.config_file import ConfigError


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    cores: int
    memory_gb: int
    price_per_hour: float
    """On demand, in the list's currency; 0 if unknown."""
    gpu_type: str = ""
    """The cloud's name of the accelerator where it must be asked for apart from the machine."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What machines cost an hour, and what is known about the figures."""

    as_of: str
    source: str
    by_machine: Mapping[str, float]
    own: frozenset[str] = frozenset()
    """Machines whose prices are the user's."""

    def __str__(self) -> str:
        return f"prices of {self.as_of}: {self.source}"


_DATA: dict[str, Any] = json.loads(
    (files("cluster.describe.fit") / "machines.json").read_text(encoding="utf-8")
)
SPOT_SHARE: float = _DATA["spot_share"]
"""Share of the price on demand that a spot machine is estimated to cost."""
CATALOGS: dict[str, tuple[dict[tuple[str, int], Machine], tuple[Machine, ...]]] = {}
"""By cloud: machines by accelerator and count, and those without, by size."""
for _cloud, _machines in _DATA["clouds"].items():
    _made = [
        ((one["accelerator"], one["count"]),
         Machine(one["name"], one["cores"], one["memory_gb"], one["price_per_hour"], one["gpu_type"]))
        for one in _machines
    ]  # fmt: skip
    CATALOGS[_cloud] = (
        {key: machine for key, machine in _made if key[1]},
        tuple(machine for key, machine in _made if not key[1]),
    )
LIST_PRICES = Prices(
    _DATA["as_of"],
    _DATA["source"],
    {one["name"]: one["price_per_hour"] for machines in _DATA["clouds"].values() for one in machines},
)


def read_prices(path: Path) -> Prices:
    """Prices of your own, for the machines that the file names; others keep the list's.

    The file is a JSON object {"as_of": "2026-11", "source": "...", "per_hour": {"p5.48xlarge": 50.1, ...}}.

    Raises:
        ConfigError: it cannot be read so.
    """
    try:
        value = json.loads(path.read_bytes())
        own = {str(name): _price(price) for name, price in value["per_hour"].items()}
        as_of, source = str(value["as_of"]), str(value["source"])
    except OSError as error:
        raise ConfigError(
            f"--prices {path} cannot be read ({error.strerror}); give a JSON file of prices"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"--prices {path} cannot be used ({type(error).__name__}: {error}); give a JSON object with "
            'as_of, source and per_hour {"machine": price}'
        ) from None
    wrong = next((name for name, price in own.items() if not 0 <= price < float("inf")), None)
    if wrong is not None:
        raise ConfigError(f"--prices {path}: the price of {wrong!r} is {own[wrong]}, it must be at least 0")
    unprintable = next((text for text in (as_of, source) if not text.isprintable()), None)
    if unprintable is not None:
        raise ConfigError(f"--prices {path}: {unprintable!r} must be one line, as it stands in a comment")
    told = f"{source}; of other machines: the list of {LIST_PRICES.as_of}"
    return Prices(as_of, told, {**LIST_PRICES.by_machine, **own}, frozenset(own))


def _price(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


_ARM = {
    "aws": re.compile(r"(a1|[a-z]+(-[a-z]+)?\d+[a-z]*g[a-z]*|p6e-gb\d+)\..*"),
    "gcp": re.compile(r"(t2a|c4a|n4a|a4x)-.*"),
}
"""Names of machines with ARM processors: at AWS a "g" behind the generation, as c7g and g5g."""


def check_processor(machine: str, cloud: str, image: str) -> None:
    """Raises ConfigError for a machine with ARM processors and an image of the system for others."""
    for_others = re.search(r"x86_64|amd64", image) or image == GcpConfig().machine_image
    if _ARM[cloud].fullmatch(machine) and for_others:
        raise ConfigError(
            f"machine {machine!r} has ARM processors, and {cloud}.machine_image = {image!r} is for x86_64; "
            "name one for arm64, and a container image that is built for it (docker build --platform "
            "linux/arm64)"
        )


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


def price_lines(
    cluster: ClusterConfig, cloud: str | None, *, head: bool = True, prices: Prices = LIST_PRICES
) -> list[str]:
    """What the cluster costs an hour, group by group and in all, and where the prices are from.

    `cloud` None is a place whose prices are not known: what AWS asks for such machines stands in. Without
    `head`, the head runs on one of the group's machines.
    """
    lines, total, unknown, used = [], 0.0, False, list[str]()
    parts: list[tuple[str, HeadConfig | GroupConfig, int, bool]] = [("head", cluster.head, 1, False)]
    parts += [(group.name, group, group.count, group.spot) for group in cluster.groups]
    for name, part, count, spot in parts if head else parts[1:]:
        price, source = part.price_per_hour, ""
        if price is None:
            name_there, price = _list_price(part, cloud or "aws", prices)
            price *= SPOT_SHARE if spot else 1
            used += [name_there] if price > 0 else []
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
    if prices.own and used and not prices.own & set(used):
        lines.append(
            f"WARNING: none of the {len(prices.own)} prices of --prices is of these machines, which are "
            f"{', '.join(dict.fromkeys(used))}; name them so"
        )
    return [*lines, str(prices)] if used else lines


def _list_price(wanted: GroupConfig | HeadConfig, cloud: str, prices: Prices) -> tuple[str, float]:
    """The machine and what an hour of it costs on demand; 0 where no price is known."""
    try:
        machine = machine_for(wanted, cloud)
    except ConfigError:
        return "", 0.0
    return machine.name, prices.by_machine.get(machine.name, machine.price_per_hour)
