"""A gRPC server and client that know nothing of the mesh (grpcio, no generated code: messages are raw bytes).

serve PORT [SECRET] | unary HOST:PORT TEXT | chat HOST:PORT COUNT | hold HOST:PORT
"""
import sys
import time
from concurrent import futures

import grpc

RAW = {"request_serializer": bytes, "response_deserializer": bytes}


class Echo(grpc.GenericRpcHandler):
    def __init__(self, secret):
        self.secret = secret

    def service(self, details):
        if details.method == "/echo.Echo/Unary":
            return grpc.unary_unary_rpc_method_handler(self.unary)
        if details.method == "/echo.Echo/Chat":
            return grpc.stream_stream_rpc_method_handler(self.chat)
        if details.method == "/echo.Admin/Secret" and self.secret:
            return grpc.unary_unary_rpc_method_handler(lambda request, context: self.secret)
        return None

    @staticmethod
    def unary(request, context):
        context.set_trailing_metadata((("echo-length", str(len(request))),))
        return request

    @staticmethod
    def chat(requests, context):
        for request in requests:
            yield b"echo " + request


def serve(port, secret=""):
    server = grpc.server(futures.ThreadPoolExecutor(16))
    server.add_generic_rpc_handlers((Echo(secret.encode()),))
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def channel(address):
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])


def unary(address, text):
    with channel(address) as ch:
        call = ch.unary_unary("/echo.Echo/Unary", **RAW)
        try:
            answer, info = call.with_call(text.encode(), timeout=10)
            trailers = dict(info.trailing_metadata())
            print(answer.decode(), "length", trailers.get("echo-length"))
        except grpc.RpcError as error:
            print("status", error.code().value[0], error.details())
            for key, value in error.initial_metadata() or ():
                print(key, value)
            for key, value in error.trailing_metadata() or ():
                print(key, value)


def chat(address, count):
    """Sends one message after the answer to the one before: both directions must stream."""
    with channel(address) as ch:
        def requests():
            for i in range(int(count)):
                yield str(i).encode()
                deadline = time.time() + 10
                while len(received) <= i and time.time() < deadline:
                    time.sleep(0.001)

        received = []
        for answer in ch.stream_stream("/echo.Echo/Chat", **RAW)(requests(), timeout=30):
            received.append(answer)
        print("chatted", len(received), received[-1].decode())


def hold(address):
    """Keeps a stream open, a message every 100 ms, and says how it ends, and when (Unix seconds)."""
    with channel(address) as ch:
        def requests():
            i = 0
            while True:
                yield str(i).encode()
                i += 1
                time.sleep(0.1)

        try:
            for answer in ch.stream_stream("/echo.Echo/Chat", **RAW)(requests()):
                print(answer.decode(), flush=True)
            print("status 0", time.time(), flush=True)
        except grpc.RpcError as error:
            print("status", error.code().value[0], time.time(), flush=True)


if __name__ == "__main__":
    {"serve": serve, "unary": unary, "chat": chat, "hold": hold}[sys.argv[1]](*sys.argv[2:])
