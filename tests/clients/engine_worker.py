"""A real engine as worker, llama.cpp's own HTTP server: engine_worker.py MODEL.gguf PORT NAME. SIGTERM ends it."""

import signal
import sys
import threading

import xllamacpp


def main():
    model, port, name = sys.argv[1:4]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {name}
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_ctx, params.n_parallel, params.n_predict, params.warmup = 16384, 4, 64, False
    params.cpuparams.n_threads = 1
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    stop.wait()


if __name__ == "__main__":
    main()
