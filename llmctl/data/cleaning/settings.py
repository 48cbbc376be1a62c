"""The settings of all rules: actions, thresholds and their defaults, for YAML and options."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

RuleAction = Literal["off", "report", "change", "remove"]


def hyphenated(name: str) -> str:
    """Return the name of a field as it is written in YAML and options."""
    return name.replace("_", "-")


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=hyphenated, populate_by_name=True
    )


class RuleSettings(_Settings):
    """Settings of one rule. The docstring of a subclass is its description in help texts."""

    actions: ClassVar[tuple[RuleAction, ...]] = ("off", "report", "remove")
    """Actions of the rule."""

    action: RuleAction = "remove"

    @model_validator(mode="after")
    def _check_action(self) -> "RuleSettings":
        if self.action not in self.actions:
            raise ValueError(f"must be {', '.join(self.actions)}")
        return self

    @property
    def missing(self) -> str:
        """The required setting that is missing; empty if none is."""
        return ""

    @property
    def is_on(self) -> bool:
        return self.action != "off" and not self.missing


class _Changing(RuleSettings):
    actions: ClassVar[tuple[RuleAction, ...]] = ("off", "report", "change")
    action: RuleAction = "change"


class _Reporting(RuleSettings):
    action: RuleAction = "report"


class Unicode(_Changing):
    """wrongly decoded text (schÃ¶n), PDF ligatures, characters in pieces"""


class ControlCharacters(_Changing):
    """control codes, terminal colours, needless zero-width characters"""


class Whitespace(_Changing):
    """spaces at line ends, many blank lines, unusual line breaks and spaces"""


class PersonalData(_Reporting):
    """e-mail, phone, identity and card numbers, public addresses, keys; change: <EMAIL>, ..."""

    actions: ClassVar[tuple[RuleAction, ...]] = ("off", "report", "change", "remove")


class Empty(RuleSettings):
    """a row with an empty turn after the repairs"""


class Placeholder(RuleSettings):
    """an answer that is only a placeholder such as <nooutput> or TODO"""


class AnswerEqualsPrompt(RuleSettings):
    """an answer that repeats its whole prompt"""

    min_units: Annotated[
        int, Field(ge=1, description="words or Chinese characters; shorter answers stay")
    ] = 5


class ChosenEqualsRejected(RuleSettings):
    """a preference pair with two equal answers"""


class Length(RuleSettings):
    """limits in tokens of the whole row, or of its last answer"""

    min_tokens: Annotated[int | None, Field(ge=0, description="of a row")] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="of a row")] = None
    min_answer_tokens: Annotated[int | None, Field(ge=0, description="of the last answer")] = None
    max_answer_tokens: Annotated[int | None, Field(ge=1, description="of the last answer")] = None

    @property
    def missing(self) -> str:
        bounds = self.min_tokens, self.max_tokens, self.min_answer_tokens, self.max_answer_tokens
        return "a limit, such as max-tokens=2048" if all(bound is None for bound in bounds) else ""


def _words(value: Any) -> Any:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class Language(RuleSettings):
    """rows in other languages than those to keep"""

    keep: Annotated[
        tuple[str, ...],
        BeforeValidator(_words),
        Field(description="codes (ISO 639-1): zh,en"),
    ] = ()
    min_confidence: Annotated[float, Field(ge=0, le=1, description="below it a row is kept")] = 0.8

    @property
    def missing(self) -> str:
        return "" if self.keep else "keep, such as keep=zh,en"


class Repetition(RuleSettings):
    """an answer that repeats itself"""

    max_share: Annotated[
        float, Field(ge=0, le=1, description="share of an answer in repeated 10-grams")
    ] = 0.5
    max_line_share: Annotated[
        float, Field(ge=0, le=1, description="share of an answer in repeated lines")
    ] = 0.6
    min_units: Annotated[
        int, Field(ge=10, description="words or Chinese characters; shorter answers stay")
    ] = 50


class BrokenCharacters(_Reporting):
    """text lost in decoding: the replacement character U+FFFD"""


class CodeFences(_Reporting):
    """an answer with an unclosed code block"""


class Refusal(_Reporting):
    """an answer that refuses, or that begins "As an AI language model" """


class Boilerplate(_Reporting):
    """boilerplate of web pages and chat windows in an answer"""


class TemplateMarkers(_Reporting):
    """markers of a chat template in a text, such as <|im_end|> or [INST]"""


class Duplicates(RuleSettings):
    """a row equal to an earlier one except for case and white space"""


class SamePrompt(_Reporting):
    """a prompt with different answers in different rows; remove keeps the first"""


class NearDuplicates(RuleSettings):
    """a row with nearly the prompt and the answer of an earlier one"""

    threshold: Annotated[
        float, Field(ge=0.3, le=1, description="Jaccard similarity of prompts, and of answers")
    ] = 0.8
    ignore_numbers: Annotated[
        bool, Field(description="rows that differ in numbers may be near duplicates")
    ] = False


class CleanSettings(_Settings):
    """All rules, in the order of their application."""

    unicode: Unicode = Unicode()
    control_characters: ControlCharacters = ControlCharacters()
    whitespace: Whitespace = Whitespace()
    personal_data: PersonalData = PersonalData()
    empty: Empty = Empty()
    placeholder: Placeholder = Placeholder()
    answer_equals_prompt: AnswerEqualsPrompt = AnswerEqualsPrompt()
    chosen_equals_rejected: ChosenEqualsRejected = ChosenEqualsRejected()
    length: Length = Length()
    language: Language = Language()
    repetition: Repetition = Repetition()
    broken_characters: BrokenCharacters = BrokenCharacters()
    code_fences: CodeFences = CodeFences()
    refusal: Refusal = Refusal()
    boilerplate: Boilerplate = Boilerplate()
    template_markers: TemplateMarkers = TemplateMarkers()
    duplicates: Duplicates = Duplicates()
    same_prompt: SamePrompt = SamePrompt()
    near_duplicates: NearDuplicates = NearDuplicates()

    def rules(self) -> dict[str, RuleSettings]:
        """Return the settings of every rule by its name, in order."""
        return {hyphenated(name): getattr(self, name) for name in type(self).model_fields}
