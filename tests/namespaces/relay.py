#!/usr/bin/env python3
"""A switch in user space that delays, holds back and doubles the frames it forwards.

It stands in for `tc qdisc … netem`, which small kernels lack, and counts what it did. It takes every frame that comes in
on the interfaces named, learns which address is behind which of them, and sends the frame on when it is due. Frames keep
their virtio headers, so segmentation and checksums that the sender's kernel put off stay put off.

`ready` on standard output says that it forwards; SIGTERM makes it print its counters as one line of JSON and end.
"""

import argparse
import heapq
import json
import random
import select
import signal
import socket
import time

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23
ETH_P_ALL = 3
VNET_HEADER = 10
# The longest frame that segmentation offload makes, with its headers.
FRAME_MAX = 1 << 17
# Frames under way. More are dropped and counted: a queue without a bound would turn overload into ever longer delay.
UNDER_WAY_MAX = 65_536


class Relay:
    def __init__(self, args):
        self.args = args
        self.random = random.Random(args.seed)
        self.ports = [self.open(name) for name in args.interfaces]
        self.behind = {}  # address -> index of the port that it is behind
        self.waiting = []  # heap of (due, number, came in at, sent on at, frame)
        self.number = 0
        self.last_due = {}  # pair of ports -> when its last frame that was not held back is due
        self.last_sent = {}  # pair of ports -> highest number sent
        self.counts = dict.fromkeys(
            ["frames", "delayed", "across", "held_back", "reordered", "doubled", "dropped", "undeliverable"], 0
        )
        self.delay_ms_sum = 0.0

    def open(self, name):
        port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        port.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        port.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        port.bind((name, ETH_P_ALL))
        port.setblocking(False)
        return port

    def zone(self, port):
        return port % max(1, self.args.zones)

    def take(self, port, frame, now):
        """Puts a frame on its way to where it belongs; to everybody while that is unknown."""
        to, source = frame[VNET_HEADER : VNET_HEADER + 6], frame[VNET_HEADER + 6 : VNET_HEADER + 12]
        self.behind[source] = port
        known = None if to[0] & 1 else self.behind.get(to)
        for target in range(len(self.ports)) if known is None else [known]:
            if target != port:
                self.send_later(port, target, frame, now)

    def send_later(self, port, target, frame, now):
        args, pair = self.args, (port, target)
        self.counts["frames"] += 1
        if self.zone(port) == self.zone(target):
            delay = args.inside_ms
        else:
            self.counts["across"] += 1
            delay = args.across_ms + self.random.uniform(-args.jitter_ms, args.jitter_ms)
        due = now + delay / 1000
        if self.random.random() * 100 < args.hold_percent:
            # What comes after it may overtake it.
            due += self.random.uniform(args.hold_min_ms, args.hold_max_ms) / 1000
            self.counts["held_back"] += 1
        else:
            # Jitter alone keeps the order of a path.
            due = max(due, self.last_due.get(pair, 0))
            self.last_due[pair] = due
        copies = 2 if self.random.random() * 100 < args.double_percent else 1
        self.counts["doubled"] += copies - 1
        for _ in range(copies):
            if len(self.waiting) >= UNDER_WAY_MAX:
                self.counts["dropped"] += 1
                continue
            self.number += 1
            heapq.heappush(self.waiting, (due, self.number, now, pair, frame))

    def send_due(self, now):
        while self.waiting and self.waiting[0][0] <= now:
            _, number, came, pair, frame = heapq.heappop(self.waiting)
            delay_ms = (now - came) * 1000
            self.delay_ms_sum += delay_ms
            self.counts["delayed"] += delay_ms >= 1
            self.counts["reordered"] += number < self.last_sent.get(pair, 0)
            self.last_sent[pair] = max(number, self.last_sent.get(pair, 0))
            try:
                self.ports[pair[1]].send(frame)
            except OSError:
                # The host is unplugged, or its queue is full: a switch drops it.
                self.counts["undeliverable"] += 1

    def run(self):
        poll = select.epoll()
        by_number = {port.fileno(): index for index, port in enumerate(self.ports)}
        for number in by_number:
            poll.register(number, select.EPOLLIN)
        print("ready", flush=True)
        while True:
            wait = self.waiting[0][0] - time.monotonic() if self.waiting else 1.0
            for number, _ in poll.poll(max(0.0, wait)):
                index = by_number[number]
                try:
                    for _ in range(64):
                        self.take(index, self.ports[index].recv(FRAME_MAX), time.monotonic())
                except BlockingIOError:
                    pass
                except OSError:
                    # ENETDOWN, once, when the host was unplugged.
                    pass
            self.send_due(time.monotonic())

    def report(self):
        sent = self.number - len(self.waiting)
        mean = self.delay_ms_sum / sent if sent else 0.0
        return json.dumps({**self.counts, "mean_delay_ms": round(mean, 2)})


def main():
    parser = argparse.ArgumentParser(description="A switch that delays, holds back and doubles frames.")
    parser.add_argument("--seed", type=int, required=True, help="of everything that is drawn")
    parser.add_argument("--zones", type=int, default=1, help="interface i is in zone i mod this")
    parser.add_argument("--inside-ms", type=float, default=0, help="delay within a zone")
    parser.add_argument("--across-ms", type=float, default=0, help="delay between zones")
    parser.add_argument("--jitter-ms", type=float, default=0, help="more or less than that between zones")
    parser.add_argument("--hold-percent", type=float, default=0, help="share of frames held back")
    parser.add_argument("--hold-min-ms", type=float, default=0, help="at least this long")
    parser.add_argument("--hold-max-ms", type=float, default=0, help="at most this long")
    parser.add_argument("--double-percent", type=float, default=0, help="share of frames sent twice")
    parser.add_argument("interfaces", nargs="+")
    relay = Relay(parser.parse_args())

    def finish(_signal, _frame):
        print(relay.report(), flush=True)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, finish)
    relay.run()


if __name__ == "__main__":
    main()
