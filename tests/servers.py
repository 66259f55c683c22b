"""Local HTTP servers that follow the protocols of HuixiangDou and of OpenAI-compatible servers, well and badly."""

import json
import socket
import struct
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serve(reply):
    """Run a server on this machine.

    Args:
        reply (callable): given the path, the headers and the decoded body, returns what to do: ("json", value, delay), ("raw", bytes),
            ("status", code, headers), ("truncated",), ("reset",).

    Yields:
        tuple[str, list]: its address, and the bodies that it was asked, in order.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            kind, *rest = reply(self.path, self.headers, body)
            if kind == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return
            status, headers, data = 200, {}, b'{"half": '
            if kind == "json":
                time.sleep(rest[1] if len(rest) > 1 else 0)
                data = json.dumps(rest[0]).encode()
            elif kind == "raw":
                data = rest[0]
            elif kind == "status":
                status, headers = rest
                data = json.dumps({"error": {"message": f"for {self.headers.get('Authorization')}"}}).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data) + (50 if kind == "truncated" else 0)))
            self.end_headers()
            try:
                self.wfile.write(data)
            except OSError:
                pass
            if kind == "truncated":
                self.close_connection = True

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def steps(state, response):
    """Return a reply of HuixiangDou's pipeline chat_in_group."""
    return {"step": [{"state": "Init state", "response": "", "refs": []}, {"state": state, "response": response, "refs": []}], "debug": {}}


def completion(content):
    """Return a reply of an OpenAI-compatible server."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
