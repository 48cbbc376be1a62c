"""Talks to `llmctl serve` with the official OpenAI client: nothing is special but the address.

Start a server with `llmctl serve`, then run `python examples/openai_client.py [URL]`.
"""

import sys

from openai import OpenAI

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
client = OpenAI(base_url=url, api_key="not needed")
model = client.models.list().data[0].id

reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": "What is the capital of France?"}],
    temperature=0,
    max_tokens=64,
)
print(reply.choices[0].message.content)
print(f"({reply.usage.prompt_tokens} tokens in, {reply.usage.completion_tokens} out)\n")

stream = client.chat.completions.create(
    model=model,
    messages=[
        {"role": "system", "content": "You answer in one short sentence."},
        {"role": "user", "content": "Why is the sky blue?"},
    ],
    seed=1,
    max_tokens=64,
    stream=True,
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
