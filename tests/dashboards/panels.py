#!/usr/bin/env python3
"""Has a real Prometheus scrape a cluster of three through faults, and asks every panel of every dashboard: panels.py SMG

Workers fail, a gateway is killed and comes back, another is stopped for a while, a third is cut off from the others and heals, all
are restarted in turn, limits reject, strangers knock. Then each query of deploy/grafana must have had a value at some moment, or stand
in EMPTY with the reason why it cannot have one here. The recording rules and alerts are evaluated too: those in FIRES must have
fired in the phase that is to raise them, and nothing else may fire in the end. Runs in a network namespace of its own, where the cut
is made by nft. Needs root, prometheus, nft and ip; takes about five minutes. Exit 0 when all hold.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/clients"))
from cluster import Cluster, fetch, free_ports  # noqa: E402

# Dashboard and panel, and why it has no value in this cluster.
EMPTY = {
    ("cluster", "Certificates: time left"): "no TLS is configured here",
}

# Alerts that a phase of this run must bring about, for whom the labels say.
FIRES = {
    "kill": ['SMGNodeDown{peer="node3"}', "SMGClusterDegraded"],
    "partition": ['SMGNodeDown{peer="node3"}', 'SMGNodeDown{peer="node1"}', "SMGMembershipDisagreement", "SMGClusterDegraded",
                  "SMGNoQuorum"],
    "rolling restart": [],
}

# Alerts that none of the phases may raise.
NEVER = ["SMGClockSkew", "SMGDataSavesFail", "SMGDrainTimedOut", "SMGNoReadyWorker", "SMGSlowFirstToken"]

MESH_NET = "127.0.9."
RATE_INTERVAL = "10s"
PROMPT = "The quick brown fox jumps over the lazy dog. " * 40


class Gateways:
    def __init__(self, cluster, folder, workers):
        self.cluster, self.folder, self.workers = cluster, folder, workers
        self.http, self.mesh, self.metrics = free_ports(3), free_ports(3), free_ports(3)
        self.urls = [f"http://127.0.0.1:{port}" for port in self.http]
        for i in range(3):
            self.start(i)

    def start(self, i):
        # Each has an address of its own for the mesh, by which it can be cut off.
        peers = ",".join(f"{MESH_NET}{n + 1}:{port}" for n, port in enumerate(self.mesh))
        self.cluster.start(f"node{i + 1}", [
            self.cluster.smg, "--enable-mesh", "--mesh-server-name", f"node{i + 1}", "--mesh-host", f"{MESH_NET}{i + 1}",
            "--mesh-port", str(self.mesh[i]), "--mesh-peer-urls", peers, "--mesh-data-dir", str(self.folder / f"data{i}"),
            "--host", "127.0.0.1", "--port", str(self.http[i]), "--worker-urls", ",".join(self.workers),
            "--prometheus-host", "127.0.0.1", "--prometheus-port", str(self.metrics[i]), "--health-check-interval-secs", "1",
            "--max-concurrent-requests", "6", "--queue-size", "4", "--cb-failure-threshold", "3",
            "--cb-timeout-duration-secs", "2", "--shutdown-grace-period-secs", "5",
        ])

    def process(self, i):
        return next(each for each in reversed(self.cluster.all) if each.name == f"node{i + 1}")

    def kill(self, i):
        process = self.process(i)
        self.cluster.all.remove(process)
        process.kill()
        process.wait()

    def end(self, i):
        process = self.process(i)
        self.cluster.all.remove(process)
        process.send_signal(signal.SIGTERM)
        if process.wait(30) != 0:
            self.cluster.show_logs()
            sys.exit(f"FAIL {process.name} ended with {process.returncode}")

    def statuses(self, i):
        nodes = (fetch(f"{self.urls[i]}/ha/status")[1] or {"nodes": []})["nodes"]
        return {node["name"]: node["status"] for node in nodes}

    def whole(self):
        return all(list(self.statuses(i).values()) == ["ALIVE"] * 3 and fetch(f"{url}/readiness")[0] == 200
                   for i, url in enumerate(self.urls))


def load(urls, ended):
    """Conversations of four clients, a third of them streamed; whatever they are answered."""
    def client(seed):
        draw = random.Random(seed)
        while not ended.is_set():
            prompt = f"session {draw.randrange(20)} {PROMPT}"
            body = {"model": "sim", "stream": draw.randrange(3) == 0, "messages": [{"role": "user", "content": prompt}]}
            fetch(f"{draw.choice(urls)}/v1/chat/completions", body)

    threads = [threading.Thread(target=client, args=[seed], daemon=True) for seed in range(12)]
    for thread in threads:
        thread.start()
    return threads


def start_prometheus(cluster, folder, gateways):
    port = free_ports(1)[0]
    targets = [f"127.0.0.1:{port}" for port in gateways.metrics]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy/prometheus/smg.rules.yml")],
        "scrape_configs": [{"job_name": "smg", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    cluster.start("prometheus", ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
                                 f"--web.listen-address=127.0.0.1:{port}"])
    url = f"http://127.0.0.1:{port}"
    cluster.eventually("prometheus is ready", lambda: query(url, "up", time.time() - 5))
    return url


def query(url, expr, since, until=None):
    """Whether the expression had a value other than NaN since then."""
    asked = urllib.parse.urlencode({"query": expr, "start": since, "end": until or time.time(), "step": "1"})
    status, answer = fetch(f"{url}/api/v1/query_range?{asked}")
    if status != 200:
        return False
    return any(value != "NaN" for series in answer["data"]["result"] for _, value in series["values"])


def faults(cluster, gateways, workers):
    """One after the other, each seen before the next."""
    fetch(f"{gateways.urls[0]}/ha/rate-limit", {"limit_per_second": 60, "burst": 20})
    time.sleep(10)
    fetch(f"{workers[1]}/sim/faults", {"faults": ["500"]})
    time.sleep(6)
    fetch(f"{workers[1]}/sim/faults", {"faults": []})
    for _ in range(50):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"nonsense", (f"{MESH_NET}1", gateways.mesh[0]))
    phases = {}
    phases["kill"] = time.time()
    gateways.kill(2)
    cluster.eventually("node3 is DOWN", lambda: gateways.statuses(0).get("node3") == "DOWN")
    # The slowest of its alerts waits a minute before it fires.
    time.sleep(66)
    gateways.start(2)
    cluster.eventually("node3 is back", gateways.whole)
    gateways.process(1).send_signal(signal.SIGSTOP)
    cluster.eventually("node2 is suspected", lambda: gateways.statuses(0).get("node2") != "ALIVE")
    gateways.process(1).send_signal(signal.SIGCONT)
    cluster.eventually("node2 has refuted", gateways.whole)
    time.sleep(10)
    phases["partition"] = time.time()
    cut("node3 from the others", [f"{MESH_NET}3"], [f"{MESH_NET}1", f"{MESH_NET}2"])
    cluster.eventually("both sides call each other DOWN", lambda: gateways.statuses(0).get("node3") == "DOWN"
                       and gateways.statuses(2) == {"node1": "DOWN", "node2": "DOWN", "node3": "ALIVE"})
    time.sleep(66)
    run("nft", "delete", "table", "ip", "cut")
    cluster.eventually("the cluster has healed", gateways.whole)
    time.sleep(10)
    phases["rolling restart"] = time.time()
    for i in range(3):
        gateways.end(i)
        gateways.start(i)
        cluster.eventually(f"node{i + 1} is back", gateways.whole, 60)
    time.sleep(10)
    phases["end"] = time.time()
    return phases


def run(*command):
    subprocess.run(command, check=True)


def cut(what, ones, others):
    """Drops what the addresses send to one another."""
    print(f"cut: {what}", flush=True)
    run("nft", "add", "table", "ip", "cut")
    run("nft", "add", "chain", "ip", "cut", "out", "{ type filter hook output priority 0; }")
    for one, other in [(ones, others), (others, ones)]:
        run("nft", "add", "rule", "ip", "cut", "out", f"ip saddr {{ {', '.join(one)} }} ip daddr {{ {', '.join(other)} }} drop")


def fired(prometheus, alert, since, until):
    name, _, labels = alert.partition("{")
    wanted = ", ".join([f'alertname="{name}"', 'alertstate="firing"', *filter(None, [labels.rstrip("}")])])
    return query(prometheus, f"ALERTS{{{wanted}}}", since, until)


def judge_alerts(prometheus, since, phases):
    """What has fired, phase by phase, and what must not have."""
    problems, ends = [], [*list(phases.values())[1:], time.time()]
    for (phase, start), end in zip(phases.items(), ends):
        for alert in FIRES.get(phase, []):
            if not fired(prometheus, alert, start, end):
                problems.append(f"alert {alert} did not fire in the phase {phase}")
    for alert in NEVER:
        if fired(prometheus, alert, since, time.time()):
            problems.append(f"alert {alert} fired")
    if query(prometheus, 'ALERTS{alertstate="firing", alertname=~"SMGN.*|SMGM.*|SMGC.*"}', time.time() - 2):
        problems.append("alerts of the cluster still fire in the end")
    return problems


def judge(prometheus, since, phases):
    problems, asked = [], 0
    for path in sorted((ROOT / "deploy/grafana").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            name = (path.stem, panel["title"])
            for target in panel["targets"]:
                expr = target["expr"].replace("$job", "smg").replace("$__rate_interval", RATE_INTERVAL)
                found, asked = query(prometheus, expr, since), asked + 1
                if found == (name in EMPTY):
                    problems.append(f"{name[0]}, {name[1]}: {'listed as empty and is not' if found else 'no value'}: {expr}")
    rules = fetch(f"{prometheus}/api/v1/rules")[1]["data"]["groups"]
    for rule in (rule for group in rules for rule in group["rules"]):
        if rule["health"] != "ok":
            problems.append(f"rule {rule['name']}: {rule.get('lastError', rule['health'])}")
    return asked, problems + judge_alerts(prometheus, since, phases)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if os.environ.get("SMG_PANELS_INSIDE") is None:
        inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, *sys.argv]
        os.execvpe("unshare", ["unshare", "--net", *inside], dict(os.environ, SMG_PANELS_INSIDE="1"))
    with tempfile.TemporaryDirectory(prefix="smg-panels-") as name, Cluster(sys.argv[1], name) as cluster:
        folder = pathlib.Path(name)
        ports = free_ports(2)
        workers = [f"http://127.0.0.1:{port}" for port in ports]
        for i, port in enumerate(ports):
            cluster.start(f"worker{i + 1}", [cluster.smg, "sim-worker", "--port", str(port), "--model", "sim", "--ttft-ms", "50"])
        cluster.eventually("workers are healthy", lambda: all(fetch(f"{url}/health")[0] == 200 for url in workers))
        gateways = Gateways(cluster, folder, workers)
        cluster.eventually("three ALIVE nodes at every gateway, all ready", gateways.whole)
        since, ended = time.time(), threading.Event()
        prometheus = start_prometheus(cluster, folder, gateways)
        threads = load(gateways.urls, ended)
        phases = faults(cluster, gateways, workers)
        ended.set()
        for thread in threads:
            thread.join()
        asked, problems = judge(prometheus, since, phases)
        for problem in problems:
            print(f"FAIL {problem}")
        print(f"{asked} queries of panels, {len(EMPTY)} panels listed as empty, {len(problems)} problems")
        sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
