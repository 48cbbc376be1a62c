"""Load test: many clients stream from one server, and a fifth of the requests are cancelled.

    llmctl serve --no-request-log &
    python tests/benchmarks/clients.py [URL] [--seconds 120] [--clients 64]

Prints the failed requests and the requests that the engine still holds afterwards (both must be
0), and the growth of the server's memory after the first tenth of the time.
"""

import argparse
import asyncio
import random
import time

import httpx
import openai
import psutil


async def client_loop(
    client: openai.AsyncOpenAI, model: str, number: int, until: float
) -> list[str]:
    """Send requests until `until`; cancel a fifth of them after a few tokens."""
    rng = random.Random(number)
    failures = []
    while time.monotonic() < until:
        cancels = rng.random() < 0.2
        try:
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": f"Tell me about {rng.randrange(999)}."}],
                max_tokens=rng.randint(8, 32),
                stream=True,
            )
            finished = False
            async with stream:
                async for chunk in stream:
                    finished = bool(chunk.choices and chunk.choices[0].finish_reason)
                    if cancels and rng.random() < 0.3:
                        break
            if not finished and not cancels:
                failures.append("a stream ended without a finish reason")
        except openai.OpenAIError as error:
            failures.append(f"{type(error).__name__}: {error}")
    return failures


def server_process(url: str) -> psutil.Process | None:
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
    server = server_process(options.url)
    async with openai.AsyncOpenAI(
        base_url=f"{options.url}/v1", api_key="none", max_retries=0, timeout=300
    ) as client:
        model = (await client.models.list()).data[0].id
        until = time.monotonic() + options.seconds
        clients = [
            asyncio.create_task(client_loop(client, model, i, until))
            for i in range(options.clients)
        ]
        await asyncio.sleep(options.seconds / 10)
        early = 0 if server is None else server.memory_info().rss
        failures = [failure for errors in await asyncio.gather(*clients) for failure in errors]
        await asyncio.sleep(2)
        health = httpx.get(options.url + "/health").json()
    print(f"failures: {len(failures)} {failures[:3]}")
    print(f"in flight afterwards: {health['in_flight']}, rows {health['running']}")
    if server is not None:
        late = server.memory_info().rss
        print(f"memory: {early / 2**20:.0f} -> {late / 2**20:.0f} MiB ({late / early - 1:+.1%})")


if __name__ == "__main__":
    asyncio.run(main())
