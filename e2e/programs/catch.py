"""Who takes a connection: serve PORT WORD | dial HOST PORT SECONDS | hold PORT GO HOST PORT.

`serve` answers each connection with the word and closes it. `dial` connects again and again and prints how often each
word came. `hold` is an HTTP/1.0 app that answers a request only once the file GO is there, with what HOST:PORT says.
"""
import collections
import os
import socket
import socketserver
import sys
import time


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


def run(port, handle):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            handle(self.request)

    with Server(("::", int(port)), Handler) as server:
        print("serving", flush=True)
        server.serve_forever()


def ask(host, port):
    try:
        with socket.create_connection((host, int(port)), timeout=2) as connection:
            return connection.makefile().readline().strip() or "nothing"
    except OSError as error:
        return type(error).__name__


def dial(host, port, seconds):
    end, words = time.time() + float(seconds), collections.Counter()
    while time.time() < end:
        words[ask(host, port)] += 1
    print(" ".join(f"{word}={count}" for word, count in sorted(words.items())))


def hold(port, go, host, other):
    def answer(request):
        request.makefile("rb").readline()
        print("asked", flush=True)
        while not os.path.exists(go):
            time.sleep(0.02)
        body = ask(host, other)
        request.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())

    run(port, answer)


if __name__ == "__main__":
    mode, *rest = sys.argv[1:]
    if mode == "serve":
        run(rest[0], lambda request: request.sendall(rest[1].encode() + b"\n"))
    else:
        {"dial": dial, "hold": hold}[mode](*rest)
