"""Starts workers and a mesh of three gateways, runs the clients against them, ends everything: cluster.py [--engine yes|no] SMG

Called by `run`, which makes the Python environment. Logs are shown when something fails.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent


class Cluster:
    """Processes and their logs; ends them with the block."""

    def __init__(self, smg, folder):
        self.smg, self.folder, self.all = smg, pathlib.Path(folder), []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.all):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self.all):
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                print(f"{process.name} did not end on SIGTERM")
                process.kill()
                process.wait()

    def start(self, name, command):
        log = open(self.folder / f"{name}.log", "wb")
        env = {k: v for k, v in os.environ.items() if not k.startswith("SMG_")}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        process.name = name
        self.all.append(process)

    def eventually(self, what, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [process.name for process in self.all if process.poll() is not None]
            if ended or time.monotonic() > deadline:
                self.show_logs()
                sys.exit(f"FAIL {what}: " + (f"{ended} ended by themselves" if ended else f"not within {seconds} s"))
            time.sleep(0.1)

    def show_logs(self):
        for log in sorted(self.folder.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()
            print(f"--- {log.name} ---", *lines[-20:], sep="\n")


def free_ports(count):
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in held]
    for each in held:
        each.close()
    return ports


def fetch(url, body=None):
    """Status and parsed JSON; status 0 when there is no answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, None
    except (OSError, ValueError):
        return 0, None


def start_gateways(cluster, worker_urls):
    http, mesh, metrics = free_ports(3), free_ports(3), free_ports(3)
    peers = ",".join(f"127.0.0.1:{port}" for port in mesh)
    for i in range(3):
        cluster.start(f"node{i + 1}", [
            cluster.smg, "--enable-mesh", "--mesh-server-name", f"node{i + 1}", "--mesh-host", "127.0.0.1",
            "--mesh-port", str(mesh[i]), "--mesh-peer-urls", peers, "--host", "127.0.0.1", "--port", str(http[i]),
            "--worker-urls", ",".join(worker_urls), "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics[i]),
            "--health-check-interval-secs", "1", "--shutdown-grace-period-secs", "5",
        ])
    urls = [f"http://127.0.0.1:{port}" for port in http]

    def is_whole(url):
        status = fetch(f"{url}/ha/status")[1] or {"nodes": []}
        return [n["status"] for n in status["nodes"]] == ["ALIVE"] * 3 and fetch(f"{url}/readiness")[0] == 200

    cluster.eventually("three ALIVE nodes at every gateway, all ready", lambda: all(map(is_whole, urls)))
    return urls


def serves(urls, model):
    def lists(url):
        listed = fetch(f"{url}/v1/models")[1] or {"data": []}
        return model in [each["id"] for each in listed["data"]]

    return lambda: all(map(lists, urls))


def run_client(urls, *args):
    return subprocess.run([sys.executable, str(HERE / "openai_client.py"), *args, *urls], check=False).returncode


def run_curl(urls):
    return subprocess.run([str(HERE / "curl_routes"), *urls], check=False).returncode


def add_engines(cluster, urls, model):
    """Two real engines, each added at another gateway than the clients' first."""
    path = cluster.folder / "tiny.gguf"
    subprocess.run([sys.executable, str(HERE / "make_model.py"), str(path)], check=True)
    for i, port in enumerate(free_ports(2)):
        cluster.start(f"engine{i + 1}", [sys.executable, str(HERE / "engine_worker.py"), str(path), str(port), model])
        engine = f"http://127.0.0.1:{port}"
        cluster.eventually(f"{engine} is healthy", lambda engine=engine: fetch(f"{engine}/health")[0] == 200)
        status, answer = fetch(f"{urls[i + 1]}/workers", {"url": engine})
        if status not in (201, 202):
            cluster.show_logs()
            sys.exit(f"FAIL POST /workers answered {status}: {answer}")
    cluster.eventually(f"every gateway lists {model}", serves(urls, model))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smg")
    parser.add_argument("--engine", choices=["yes", "no"], default="yes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="smg-clients-") as folder, Cluster(args.smg, folder) as cluster:
        workers = free_ports(2)
        for i, port in enumerate(workers):
            cluster.start(f"worker{i + 1}", [args.smg, "sim-worker", "--port", str(port), "--model", "sim"])
        worker_urls = [f"http://127.0.0.1:{port}" for port in workers]
        cluster.eventually("simulated workers are healthy", lambda: all(fetch(f"{url}/health")[0] == 200 for url in worker_urls))
        urls = start_gateways(cluster, worker_urls)
        cluster.eventually("every gateway lists sim", serves(urls, "sim"))
        told = [word for url in worker_urls for word in ("--worker", url)]
        results = {"simulated workers": run_client(urls, "--model", "sim", *told), "curl": run_curl(urls)}
        if args.engine == "yes":
            add_engines(cluster, urls, "tiny")
            # The tiny model makes no embeddings, and its server keeps no responses.
            results["real engines"] = run_client(urls, "--model", "tiny", "--skip", "embeddings", "--skip", "responses")
        if any(results.values()):
            cluster.show_logs()
        for name, code in results.items():
            print(f"{'FAIL' if code else 'ok  '} {name}")
        sys.exit(1 if any(results.values()) else 0)


if __name__ == "__main__":
    main()
