"""A line protocol that is no HTTP: serve PORT | hold HOST PORT.

`hold` sends a line every 20 ms on one connection and waits for its echo; it prints `open T` when the first echo of a
connection comes and `closed T` when the connection ends (T: Unix seconds), then dials again.
"""
import socket
import socketserver
import sys
import time


class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(b"echo " + line)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6
    allow_reuse_address = True
    daemon_threads = True


def serve(port):
    with Server(("::", int(port)), Echo) as server:
        print("serving", flush=True)
        server.serve_forever()


def hold(host, port):
    while True:
        opened = False
        try:
            with socket.create_connection((host, int(port)), timeout=5) as connection:
                lines = connection.makefile("rwb", buffering=0)
                while True:
                    lines.write(b"line\n")
                    if lines.readline() != b"echo line\n":
                        break
                    if not opened:
                        print("open", time.time(), flush=True)
                        opened = True
                    time.sleep(0.02)
        except OSError:
            pass
        if opened:
            print("closed", time.time(), flush=True)
        time.sleep(0.05)


if __name__ == "__main__":
    {"serve": serve, "hold": hold}[sys.argv[1]](*sys.argv[2:])
