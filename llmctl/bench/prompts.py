"""Prompts of a benchmark, generated from a key: the same key gives the same prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from llmctl.config.bench import PromptSet

PREFIX_CACHE_SETS: frozenset[PromptSet] = frozenset({"shared", "multiturn"})
"""Sets that measure the prefix cache; prompts of the other sets differ from the first words on."""

LONG_WORDS = 1000
"""Words of a long prompt; any tokenizer makes at least as many tokens."""

_KINDS = ("old", "quiet", "careful", "young", "stubborn", "cheerful", "tired", "curious", "famous")
_PEOPLE = ("miller", "sailor", "teacher", "gardener", "doctor", "painter", "baker", "farmer")
_DEEDS = ("carries", "repairs", "sells", "hides", "finds", "draws", "weighs", "describes")
_COLOURS = ("blue", "heavy", "broken", "silver", "wooden", "round", "painted", "borrowed")
_THINGS = (
    "lantern",
    "clock",
    "ladder",
    "kettle",
    "bridge",
    "letter",
    "basket",
    "violin",
    "compass",
)
_PLACES = (
    "near the harbour",
    "behind the station",
    "across the river",
    "under the tall trees",
    "on the market square",
    "beside the empty school",
    "at the end of the road",
)
_TIMES = ("before sunrise", "every Monday", "in the rain", "after lunch", "all winter", "at night")


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """The prompts of one level."""

    conversations: tuple[tuple[str, ...], ...]
    """The user's messages, turn by turn."""
    priming: tuple[str, ...] | None = None
    """A conversation before the measurement, which fills the prefix cache."""


def prompt_batch(prompts: PromptSet, count: int, key: str) -> PromptBatch:
    """Return `count` different conversations; another key gives different ones from the start."""
    rngs = [Random(f"{key}/{prompts}/{index}") for index in range(count)]
    match prompts:
        case "short":
            return PromptBatch(tuple((_short(rng),) for rng in rngs))
        case "long":
            return PromptBatch(tuple((f"{_report(rng)}\n\n{RETELL}",) for rng in rngs))
        case "multiturn":
            return PromptBatch(
                tuple((f"{_report(rng)}\n\n{RETELL}", _question(rng)) for rng in rngs)
            )
        case "shared":
            first = Random(f"{key}/{prompts}")
            report = _report(first)
            return PromptBatch(
                tuple((f"{report}\n\n{_question(rng)}",) for rng in rngs),
                priming=(f"{report}\n\n{_question(first)}",),
            )


RETELL = "Retell this report in your own words, with as many details as you can."


def _short(rng: Random) -> str:
    return f"Story {_number(rng)}: write a long story that begins like this. {_sentence(rng)}"


def _question(rng: Random) -> str:
    who, thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    return f"Question {_number(rng)}: what does the {who} think of the {thing}? Answer at length."


def _report(rng: Random) -> str:
    # The number comes first, so that no two reports share a prefix.
    return f"Report {_number(rng)}. {' '.join(_words(rng, LONG_WORDS))}"


def _words(rng: Random, at_least: int) -> Iterator[str]:
    while at_least > 0:
        words = _sentence(rng).split()
        yield from words
        at_least -= len(words)


def _sentence(rng: Random) -> str:
    kind, who, deed = rng.choice(_KINDS), rng.choice(_PEOPLE), rng.choice(_DEEDS)
    colour, thing = rng.choice(_COLOURS), rng.choice(_THINGS)
    place, time = rng.choice(_PLACES), rng.choice(_TIMES)
    return f"The {kind} {who} {deed} a {colour} {thing} {place} {time}."


def _number(rng: Random) -> int:
    return rng.randrange(10**8, 10**9)
