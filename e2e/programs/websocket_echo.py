"""A WebSocket server and client that know nothing of the mesh: serve PORT | say URL TEXT | hold URL."""
import asyncio
import sys
import time

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve as listen


async def echo(connection):
    async for message in connection:
        await connection.send("echo " + message)


async def serve(port):
    async with listen(echo, ["0.0.0.0", "::"], int(port)):
        print("serving", flush=True)
        await asyncio.Future()


async def say(url, text):
    try:
        async with connect(url, proxy=None) as connection:
            await connection.send(text)
            print(await connection.recv())
    except websockets.exceptions.InvalidStatus as error:
        print("status", error.response.status_code, error.response.headers.get("x-postern-decision-id"))


async def hold(url):
    async with connect(url, proxy=None) as connection:
        try:
            while True:
                await connection.send("tick")
                print(await connection.recv(), flush=True)
                await asyncio.sleep(0.1)
        except websockets.exceptions.ConnectionClosed:
            print("closed", time.time(), flush=True)


if __name__ == "__main__":
    asyncio.run({"serve": serve, "say": say, "hold": hold}[sys.argv[1]](*sys.argv[2:]))
