"""A site under WSGI (the standard library's server), as frameworks see requests: the path is decoded, a field's name has no
dashes. Usage: site_wsgi.py PORT DIRECTORY MARKER"""
import os
import posixpath
import socketserver
import sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

port, root, marker = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()


def site(environ, start_response):
    def answer(status, text):
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(text)))])
        return [text]

    name = posixpath.normpath("/" + environ["PATH_INFO"].lstrip("/"))
    if name == "/debug":
        debug = "on" in [part.strip() for part in environ.get("HTTP_X_DEBUG", "").split(",")]
        return answer("200 OK", marker + b"\n" if debug else b"nothing to see\n")
    file = root + name
    try:
        if os.path.isdir(file):
            file += "/index.html"
        with open(file, "rb") as page:
            return answer("200 OK", page.read())
    except (OSError, ValueError):
        return answer("404 Not Found", b"no such page\n")


class Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Quiet(WSGIRequestHandler):
    def log_message(self, *_):
        pass


with make_server("127.0.0.1", port, site, Server, Quiet) as server:
    print("serving", flush=True)
    server.serve_forever()
