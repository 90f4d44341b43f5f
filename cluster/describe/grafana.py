"""A Grafana dashboard and Prometheus' scrape settings for the labeler's metrics on Ray's endpoint. Pure.

Ray's agent on every node exports them, with the prefix `ray_`, on the node's metrics port.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.describe.settings.cluster import ClusterConfig

STORE = '{store=~"$store"}'
PANEL_WIDTH, PANEL_HEIGHT, GRID_WIDTH = 12, 8, 24


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    unit: str
    """Grafana's name of a unit."""
    queries: tuple[tuple[str, str], ...]
    """PromQL and legend."""
    description: str
    kind: str = "timeseries"


PANELS = (
    Panel(
        "Units done",
        "percentunit",
        (
            (
                f"max by (store) (ray_penumbra_units_done{STORE})"
                f" / max by (store) (ray_penumbra_units_planned{STORE})",
                "{{store}}",
            ),
        ),
        "Committed units as a share of the plan.",
        "gauge",
    ),
    Panel(
        "Tokens per second",
        "short",
        ((f"sum by (store) (ray_penumbra_tokens_per_second{STORE})", "{{store}}"),),
        "Tokens that the engines labeled, over the last half minute.",
    ),
    Panel(
        "Label rows committed per second",
        "short",
        ((f"sum by (store) (rate(ray_penumbra_label_rows_total{STORE}[5m]))", "{{store}}"),),
        "What reached the store. Behind the engines for long: the object store is slow.",
    ),
    Panel(
        "Bytes per label row",
        "bytes",
        ((f"max by (store) (ray_penumbra_bytes_per_token{STORE})", "{{store}}"),),
        "Stored bytes per label row; grows when the teacher's text changes its kind.",
    ),
    Panel(
        "Written per second",
        "Bps",
        ((f"sum by (store) (rate(ray_penumbra_stored_bytes_total{STORE}[5m]))", "{{store}}"),),
        "Bytes of committed shards.",
    ),
    Panel(
        "Workers and leases",
        "short",
        (
            (f"max by (store) (ray_penumbra_ready_workers{STORE})", "ready workers {{store}}"),
            (f"max by (store) (ray_penumbra_leased_units{STORE})", "leased units {{store}}"),
        ),
        "Workers with a loaded teacher; fewer than asked for means nodes are missing or engines restart.",
    ),
    Panel(
        "Failures",
        "short",
        (
            (
                f"sum by (store, kind) (increase(ray_penumbra_failures_total{STORE}[15m]))",
                "{{kind}} {{store}}",
            ),
        ),
        "Engine deaths, lost nodes and the like, in the last quarter of an hour.",
    ),
    Panel(
        "Rejected records",
        "short",
        ((f"sum by (store, kind) (ray_penumbra_rejects_total{STORE})", "{{kind}} {{store}}"),),
        "Input records without labels, by reason.",
    ),
    Panel(
        "Nodes' CPU",
        "percent",
        (("ray_node_cpu_utilization", "{{instance}}"),),
        "Of each node of the Ray cluster.",
    ),
    Panel(
        "Nodes' GPU",
        "percent",
        (("ray_node_gpus_utilization", "{{instance}} GPU {{GpuIndex}}"),),
        "Low while workers are ready: units are too small, or the front end of the engine is the limit.",
    ),
)


def dashboard(cluster: ClusterConfig) -> dict[str, Any]:
    """JSON to import into Grafana; it asks for the Prometheus data source."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    per_row = GRID_WIDTH // PANEL_WIDTH
    panels = []
    for place, panel in enumerate(PANELS):
        position = {
            "x": (place % per_row) * PANEL_WIDTH,
            "y": (place // per_row) * PANEL_HEIGHT,
            "w": PANEL_WIDTH,
            "h": PANEL_HEIGHT,
        }
        panels.append(
            {
                "id": place + 1,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.description,
                "datasource": source,
                "gridPos": position,
                "fieldConfig": {"defaults": _scale(panel.unit), "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "datasource": source}
                    for i, (query, legend) in enumerate(panel.queries)
                ],
            }
        )
    choices = [
        {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
        {
            "name": "store",
            "type": "query",
            "label": "Store",
            "datasource": source,
            "query": {"query": "label_values(ray_penumbra_units_planned, store)", "refId": "stores"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
        },
    ]
    return {
        "title": f"Penumbra: {cluster.name}",
        "uid": f"penumbra-{cluster.name}"[:40],
        "schemaVersion": 39,
        "tags": ["penumbra", "ray"],
        "time": {"from": "now-3h", "to": "now"},
        "refresh": "15s",
        "templating": {"list": choices},
        "panels": panels,
    }


def _scale(unit: str) -> dict[str, Any]:
    most = {"percentunit": {"max": 1}, "percent": {"max": 100}}.get(unit, {})
    return {"unit": unit, "min": 0, **most}


def prometheus(cluster: ClusterConfig) -> dict[str, Any]:
    """The scrape settings, for a Prometheus that runs on the head.

    Ray's head keeps the file of targets; nodes that come and go are in it within half a minute.
    """
    return {
        "global": {"scrape_interval": "15s"},
        "scrape_configs": [
            {
                "job_name": cluster.name,
                "file_sd_configs": [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}],
            }
        ],
    }
