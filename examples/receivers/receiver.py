#!/usr/bin/env python3
"""A receiver of walhook's requests: verifies the signature, drops repeats, answers 204, and works then.

    WEBHOOK_SECRET=whsec_... python3 receiver.py [PORT]

Python's standard library alone. Prints the port, then one line of JSON for each event that is new. What to
copy from it is `verify`; what stands around it is a toy: a real receiver stores the event and its id in one
transaction before it answers.
"""

import base64
import collections
import hashlib
import hmac
import json
import os
import queue
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

TOLERANCE_SECONDS = 5 * 60
BODY_MAX_BYTES = 2 << 20
SEEN_MAX = 100_000
KEY_MIN_BYTES = 24


def key_of(secret: str) -> bytes:
    """whsec_ and base64, in either alphabet, is the key itself; any other text is taken as it stands.

    ValueError where it is none: with an empty key anybody could sign.
    """
    prefix, secret = "whsec_", secret.strip()
    if not secret.startswith(prefix):
        return secret.encode()
    text = secret[len(prefix):].rstrip("=").replace("-", "+").replace("_", "/")
    key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if len(key) < KEY_MIN_BYTES:
        raise ValueError(f"fewer than {KEY_MIN_BYTES} bytes")
    return key


def verify(key: bytes, headers, body: bytes, now: float) -> str:
    """The event's id, or ValueError: the request is not walhook's, or is an old one that somebody kept.

    Standard Webhooks: base64 of the HMAC-SHA256 of `id.timestamp.body`, behind `v1,`. While a secret is being
    rotated there are several signatures, separated by spaces, of which one has to match.
    """
    event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isascii() or not timestamp.isdigit():
        raise ValueError("no timestamp")
    if abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        raise ValueError("too old, or a clock is wrong")
    signed = b".".join([event_id.encode(), timestamp.encode(), body])
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    for signature in headers.get("webhook-signature", "").split(" "):
        version, _, value = signature.partition(",")
        # In constant time: how long it takes tells nothing of the signature.
        if version == "v1" and hmac.compare_digest(value.encode(), expected):
            return event_id
    raise ValueError("no signature matches")


def work(events):
    """What an event is for. It runs beside the answers: a receiver that works first is one that times out."""
    while True:
        body = events.get()
        try:
            print(json.dumps(json.loads(body)), flush=True)
        except Exception as why:  # One event, too deep say, must not end the work on all others.
            print(f"no work on an event: {why!r}", file=sys.stderr, flush=True)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 30
    key = b""
    seen = collections.OrderedDict()
    lock = Lock()
    events = queue.Queue(maxsize=1_000)

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > BODY_MAX_BYTES:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(int(length))
        try:
            event_id = verify(self.key, self.headers, body, time.time())
        except ValueError as why:
            print(f"refused: {why}", file=sys.stderr, flush=True)
            return self.answer(401)
        with self.lock:
            # The same event may come twice: after a crash, or as a replay. Its id says so.
            is_new = event_id not in self.seen
            self.seen[event_id] = None
            if len(self.seen) > SEEN_MAX:
                self.seen.popitem(last=False)
        if is_new:
            self.events.put(body)
        self.answer(204)

    def answer(self, status: int):
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    if not os.environ.get("WEBHOOK_SECRET", "").strip():
        sys.exit("set WEBHOOK_SECRET to the secret in the endpoint's row")
    try:
        Receiver.key = key_of(os.environ["WEBHOOK_SECRET"])
    except ValueError as why:
        sys.exit(f"WEBHOOK_SECRET is not whsec_ and the base64 of a key: {why}")
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    server = ThreadingHTTPServer(("127.0.0.1", port), Receiver)
    print(server.server_address[1], flush=True)
    Thread(target=work, args=[Receiver.events], daemon=True).start()
    server.serve_forever()
