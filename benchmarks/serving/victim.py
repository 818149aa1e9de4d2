"""`victim.py TARGET METHOD BODY IN_FLIGHT`: sends the file BODY to a method again and again, until it is killed."""

import sys
import threading
import time
from pathlib import Path

import grpc

from serving.bodies import NO_LIMIT


def main() -> None:
    """Says `sending` when the first requests are on their way."""
    target, method, body, in_flight = sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes(), int(sys.argv[4])
    slots = threading.Semaphore(in_flight)
    with grpc.insecure_channel(target, options=NO_LIMIT) as channel:
        call = channel.unary_unary(method)
        sent = 0
        while True:
            slots.acquire()
            call.future(body, timeout=60).add_done_callback(lambda _: slots.release())
            sent += 1
            if sent == in_flight:
                print("sending", flush=True)
            if sent > in_flight:
                time.sleep(0.001)


if __name__ == "__main__":
    main()
