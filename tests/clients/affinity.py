"""What cache-aware routing is worth with a real engine: affinity.py [--talks N] [--turns N] SMG

Two engines behind three gateways; each turn of a conversation goes to the next gateway. Three ways to route: cache_aware
in a mesh, round_robin in a mesh, and cache_aware in three gateways that know nothing of one another. Every way gets fresh
engines. Prints the median time to the first token of follow-up turns and the share of their prompt that came from the
engine's cache, and both as ratios to cache_aware. Called by `run --affinity`, which makes the Python environment.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse

from cluster import HERE, Cluster, fetch, free_ports, serves

WORDS = "the cache of one worker holds what it has read and nobody else does so ask there again".split()


def text(seed, chars):
    words = (WORDS[(seed * 7 + i * i * (seed + 3) + i) % len(WORDS)] for i in range(chars))
    return f"{seed}: " + " ".join(words)[:chars]


def start_engines(cluster, model):
    urls = []
    for i, port in enumerate(free_ports(2)):
        cluster.start(f"engine{i + 1}", [sys.executable, str(HERE / "engine_worker.py"), str(model), str(port), "tiny"])
        urls.append(f"http://127.0.0.1:{port}")
    for url in urls:
        cluster.eventually(f"{url} is healthy", lambda url=url: fetch(f"{url}/health")[0] == 200)
    return urls


def start_gateways(cluster, workers, policy, mesh):
    http_ports, mesh_ports, metrics = free_ports(3), free_ports(3), free_ports(3)
    peers = ",".join(f"127.0.0.1:{port}" for port in mesh_ports)
    for i in range(3):
        command = [cluster.smg, "--host", "127.0.0.1", "--port", str(http_ports[i]), "--worker-urls", ",".join(workers),
                   "--policy", policy, "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics[i]),
                   "--health-check-interval-secs", "1", "--shutdown-grace-period-secs", "2"]
        if mesh:
            command += ["--enable-mesh", "--mesh-server-name", f"node{i + 1}", "--mesh-host", "127.0.0.1",
                        "--mesh-port", str(mesh_ports[i]), "--mesh-peer-urls", peers]
        cluster.start(f"gateway{i + 1}", command)
    urls = [f"http://127.0.0.1:{port}" for port in http_ports]

    def is_ready(url):
        status, body = fetch(f"{url}/readiness")
        nodes = [node["status"] for node in (fetch(f"{url}/ha/status")[1] or {"nodes": []})["nodes"]] if mesh else []
        return status == 200 and body["healthy_workers"] == 2 and nodes == ["ALIVE"] * (3 if mesh else 0)

    cluster.eventually("every gateway is ready", lambda: all(map(is_ready, urls)), 60)
    cluster.eventually("every gateway lists the model", serves(urls, "tiny"), 60)
    return urls


def ask(url, messages):
    """Time to the first token in seconds, cached and all prompt tokens, and the answer."""
    body = json.dumps({"model": "tiny", "messages": messages, "max_tokens": 8, "stream": True, "temperature": 0,
                       "stream_options": {"include_usage": True}})
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=300)
    start = time.monotonic()
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"FAIL {url} answered {answer.status}: {answer.read()[:500]}")
    first, said, usage = None, "", {}
    for line in answer:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices", []):
            piece = choice["delta"].get("content") or ""
            if piece and first is None:
                first = time.monotonic() - start
            said += piece
    connection.close()
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return first or time.monotonic() - start, cached, usage["prompt_tokens"], said


def converse(urls, talks, turns):
    """Times to the first token and cached shares of all follow-ups."""
    all_messages = [[{"role": "system", "content": text(number, 900)}] for number in range(talks)]
    times, cached_tokens, prompt_tokens = [], 0, 0
    for turn in range(turns):
        for number, messages in enumerate(all_messages):
            messages.append({"role": "user", "content": text(100 + number * turns + turn, 200)})
            # Neither in step with the workers nor with the gateways, as clients behind a load balancer are.
            first, cached, prompt, said = ask(urls[(number * 2 + turn + turn // 2) % 3], messages)
            messages.append({"role": "assistant", "content": said})
            if turn > 0:
                times.append(first)
                cached_tokens, prompt_tokens = cached_tokens + cached, prompt_tokens + prompt
    return statistics.median(times), cached_tokens / prompt_tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("smg")
    # An engine keeps four prompts: as many as it has slots.
    parser.add_argument("--talks", type=int, default=6, help="conversations, default 6")
    parser.add_argument("--turns", type=int, default=4, help="turns of each, default 4")
    args = parser.parse_args()
    ways = [("cache_aware, mesh", "cache_aware", True), ("round_robin, mesh", "round_robin", True),
            ("cache_aware, no mesh", "cache_aware", False)]
    found = {}
    with tempfile.TemporaryDirectory(prefix="smg-affinity-") as folder:
        model = f"{folder}/tiny.gguf"
        subprocess.run([sys.executable, str(HERE / "make_model.py"), model], check=True)
        for name, policy, mesh in ways:
            with Cluster(args.smg, folder) as cluster:
                urls = start_gateways(cluster, start_engines(cluster, model), policy, mesh)
                found[name] = converse(urls, args.talks, args.turns)
    print(f"{args.talks} conversations of {args.turns} turns, two engines, three gateways; follow-ups alone:")
    print(f"{'':24}{'median TTFT ms':>16}{'ratio':>8}{'from cache':>12}{'ratio':>8}")
    base = found[ways[0][0]]
    for name, (ttft, share) in found.items():
        print(f"{name:24}{ttft * 1000:16.0f}{ttft / base[0]:8.2f}{share:12.3f}{share / base[1]:8.2f}")
    is_better = all(found[name][0] > base[0] and found[name][1] < base[1] for name, _, _ in ways[1:2])
    sys.exit(0 if is_better else "FAIL cache_aware is no better than round_robin")


if __name__ == "__main__":
    main()
