"""Metrics of a job on the port where Prometheus would ask Ray's agent for them."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import contextlib, json, time, urllib.request
import ray
from labeler.config.loading import load_job
from labeler.driver.metrics import JobMetrics
from labeler.on_ray.runtime import ray_for
from labeler.job.status import Tally, snapshot
from logitstore.job_objects import WorkerView

job = load_job(None, ["teacher.engine=fake", "input.uri=i", "input.kind=text", "output.uri=o"], {})
tally = Tally(units_total=5, units_done=2, tokens=700, rows=400, bytes=52000)
tally.count_failure("engine_died", "why")
with ray_for(job):
    metrics = JobMetrics("here/store")
    workers = [WorkerView("w0", "n", "ready"), WorkerView("w1", "n", "loading")]
    look = dict(state="running", started="", workers=workers, queue_depth=3, cost=None, message="")
    metrics.update(snapshot(tally, **look))
    tally.tokens += 300
    metrics.update(snapshot(tally, **look))
    url = f"http://{ray.util.get_node_ip_address()}:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    found = []
    while not any("penumbra_tokens_total" in line and line.endswith(" 1000.0") for line in found):
        time.sleep(0.5)
        with contextlib.suppress(OSError):  # the agent may not listen yet
            text = urllib.request.urlopen(url, timeout=10).read().decode()
            found = [line for line in text.splitlines() if "penumbra_" in line and not line.startswith("#")]
print(json.dumps(found))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prometheus_finds_rate_depth_bytes_and_failures_by_kind():
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    lines = json.loads(result.stdout.splitlines()[-1])
    values = {line.split("{")[0].removeprefix("ray_"): float(line.rsplit(" ", 1)[1]) for line in lines}
    assert values["penumbra_bytes_per_token"] == 130
    assert values["penumbra_leased_units"] == 3
    assert values["penumbra_ready_workers"] == 1
    assert values["penumbra_units_planned"] == 5
    assert values["penumbra_tokens_total"] == 1000
    assert values["penumbra_failures_total"] == 1
    failures = next(line for line in lines if "penumbra_failures" in line)
    assert 'kind="engine_died"' in failures
    assert 'store="here/store"' in failures
