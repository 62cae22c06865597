"""A client that stamps what it waits for: `rig.stamping_client URL` prints a JSON list of (prompt tokens, time to the
first byte, time to the end, both ns, whether it was streamed).

It goes first where that is allowed: what a client waits for a processor is no server's doing. Its requests begin at
instants of their own: at the very end of another, and two at once, they would wait for the server's loop and for one
another before either side can say so.
"""

import http.client
import itertools
import json
import os
import random
import socket
import sys
import threading
import time
from contextlib import suppress
from urllib.parse import urlsplit

NUM_REQUESTS = 120
NUM_AT_A_TIME = 2
SHORTEST = 340  # tokens; each request has a prompt of its own length, by which it is known again
OUTPUT_TOKENS = 48
MEAN_PAUSE_S = 0.01


def go_first() -> None:
    """Run this thread and its children before all others, where that is allowed (sched(7))."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def connect(url: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(urlsplit(url).netloc)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def ask(connection: http.client.HTTPConnection, length: int, output_tokens: int, is_streamed: bool) -> tuple:
    """Send a request with a prompt of a length and return what was measured of it."""
    asked = {"model": "tiny-llama", "max_tokens": output_tokens, "temperature": 0, "ignore_eos": True}
    asked |= {"prompt": f"{time.monotonic_ns():020}".ljust(length, "x"), "stream": is_streamed}
    body = json.dumps(asked).encode()
    begun_ns = time.monotonic_ns()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read1()
    first_ns = time.monotonic_ns()
    response.read()
    ended_ns = time.monotonic_ns()
    assert response.status == 200
    return length, first_ns - begun_ns, ended_ns - begun_ns, is_streamed


def work(url: str, numbers, found: list) -> None:
    connection = connect(url)
    for number in numbers:
        time.sleep(random.expovariate(1 / MEAN_PAUSE_S))
        found.append(ask(connection, SHORTEST + number, OUTPUT_TOKENS, bool(number % 2)))


def main(url: str) -> None:
    go_first()
    found: list = []
    lock, counter = threading.Lock(), itertools.count()

    def numbers():
        while True:
            with lock:
                number = next(counter)
            if number >= NUM_REQUESTS:
                return
            yield number

    threads = [threading.Thread(target=work, args=(url, numbers(), found)) for _ in range(NUM_AT_A_TIME)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
