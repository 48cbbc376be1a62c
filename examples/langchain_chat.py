"""LangChain with `llmctl serve`: invoke, stream, batch, structured output and tools.

pip install langchain-openai
llmctl serve &
python examples/langchain_chat.py [URL]
"""

import os
import sys
from typing import Annotated, Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openai import OpenAI
from pydantic import BaseModel, Field

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/v1"
KEY = os.environ.get("LLMCTL_API_KEY", "not needed")


class Place(BaseModel):
    """A famous place."""

    city: str = Field(max_length=20)
    country: Literal["France", "Japan", "Peru"]


@tool
def get_weather(city: Annotated[str, Field(max_length=20)]) -> str:
    """Return the weather in a city."""
    return f"It rains in {city}."


def main() -> None:
    model = OpenAI(base_url=URL, api_key=KEY).models.list().data[0].id
    chat = ChatOpenAI(model=model, base_url=URL, api_key=KEY, temperature=0, max_tokens=300)

    print("invoke:", chat.invoke("What is the capital of France?").content)

    print("stream: ", end="")
    for chunk in chat.stream("Why is the sky blue? One sentence."):
        print(chunk.content, end="", flush=True)
    print()

    for reply in chat.batch(["Name a colour.", "Name a fruit."]):
        print("batch:", " ".join(reply.content.split()))

    place = chat.with_structured_output(Place, method="json_schema")
    print("structured:", place.invoke("Where is the Eiffel Tower?"))

    calling = chat.bind_tools([get_weather], tool_choice="get_weather")
    for call in calling.invoke("What is the weather in Paris?").tool_calls:
        print("tool:", call["name"], call["args"], "->", get_weather.invoke(call["args"]))


if __name__ == "__main__":
    main()
