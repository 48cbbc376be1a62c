"""Sixty-four people stream from one server for two minutes, and a fifth of them hang up.

    llmctl serve --no-request-log &
    python tests/benchmarks/clients.py [URL] [--seconds 120] [--clients 64]

Prints what failed among those who stayed (nothing may), what the engine still holds afterwards
(nothing may), and how the server's memory grew from the tenth part of the time on.
"""

import argparse
import asyncio
import random
import time

import httpx
import openai
import psutil


async def person(client: openai.AsyncOpenAI, model: str, number: int, until: float) -> list[str]:
    """Ask again and again; every fifth time hang up after a few tokens."""
    dice = random.Random(number)
    failures = []
    while time.monotonic() < until:
        leaves = dice.random() < 0.2
        try:
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"Tell me about {dice.randrange(999)}."}],
                max_tokens=dice.randint(8, 32),
                stream=True,
            )
            finished = False
            async with stream:
                async for chunk in stream:
                    finished = bool(chunk.choices and chunk.choices[0].finish_reason)
                    if leaves and dice.random() < 0.3:
                        break
            if not finished and not leaves:
                failures.append("a stream ended without its finish")
        except openai.OpenAIError as error:
            failures.append(f"{type(error).__name__}: {error}")
    return failures


def memory_of_server(url: str) -> psutil.Process | None:
    port = httpx.URL(url).port
    for connection in psutil.net_connections("tcp"):
        if connection.status == "LISTEN" and tuple(connection.laddr)[1:2] == (port,):
            return psutil.Process(connection.pid)
    return None


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=64)
    options = parser.parse_args()
    server = memory_of_server(options.url)
    async with openai.AsyncOpenAI(
        base_url=f"{options.url}/v1", api_key="none", max_retries=0, timeout=300
    ) as client:
        model = (await client.models.list()).data[0].id
        until = time.monotonic() + options.seconds
        people = [
            asyncio.create_task(person(client, model, i, until)) for i in range(options.clients)
        ]
        await asyncio.sleep(options.seconds / 10)
        early = 0 if server is None else server.memory_info().rss
        failures = [failure for part in await asyncio.gather(*people) for failure in part]
        await asyncio.sleep(2)
        health = httpx.get(options.url + "/health").json()
    print(f"failures: {len(failures)} {failures[:3]}")
    print(f"in flight afterwards: {health['in_flight']}, rows {health['running']}")
    if server is not None:
        late = server.memory_info().rss
        print(f"memory: {early / 2**20:.0f} -> {late / 2**20:.0f} MiB ({late / early - 1:+.1%})")


if __name__ == "__main__":
    asyncio.run(main())
