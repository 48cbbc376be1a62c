"""OpenAI's official client with `llmctl serve`: only the base URL differs.

Start a server with `llmctl serve`, then run `python examples/openai_client.py [URL]`.
"""

import asyncio
import json
import os
import sys

from openai import AsyncOpenAI, OpenAI

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
KEY = os.environ.get("LLMCTL_API_KEY", "not needed")
client = OpenAI(base_url=URL, api_key=KEY)
model = client.models.list().data[0].id


def complete() -> None:
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=64,
    )
    print(reply.choices[0].message.content)
    print(f"({reply.usage.prompt_tokens} tokens in, {reply.usage.completion_tokens} out)\n")


def stream() -> None:
    chunks = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "system", "content": "You answer in one short sentence."},
            {"role": "user", "content": "Why is the sky blue?"},
        ],
        seed=1,
        max_tokens=64,
        stream=True,
    )
    for chunk in chunks:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print("\n")


def structured_output() -> None:
    """Get JSON that is valid under a schema, from any model."""
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "country": {"enum": ["France", "Japan", "Peru"]},
        },
        "required": ["city", "country"],
        "additionalProperties": False,
    }
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Where is the Eiffel Tower?"}],
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "place", "schema": schema, "strict": True},
        },
    )
    print(json.loads(reply.choices[0].message.content), "\n")


def call_a_tool() -> None:
    """Make the model call a tool. With `auto` instead of a name it must be trained to use tools."""
    weather = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
            },
        },
    }
    reply = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        temperature=0,
        tools=[weather],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    (call,) = reply.choices[0].message.tool_calls
    print(f"the model calls {call.function.name} with {call.function.arguments}\n")


async def concurrent_requests() -> None:
    """Send requests that the server runs in one batch."""
    async with AsyncOpenAI(base_url=URL, api_key=KEY) as async_client:
        replies = await asyncio.gather(
            *(
                async_client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": f"Say something about {thing}."}],
                    max_tokens=24,
                )
                for thing in ("rain", "bread", "the moon")
            )
        )
    for reply in replies:
        print("-", " ".join(reply.choices[0].message.content.split()))


if __name__ == "__main__":
    complete()
    stream()
    structured_output()
    call_a_tool()
    asyncio.run(concurrent_requests())
