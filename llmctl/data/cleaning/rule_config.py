"""Rule settings from a file and from command-line options, with all errors in one message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmctl.config.settings import ConfigSource
from llmctl.data.cleaning.settings import CleanSettings, hyphenated
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ConfigError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


@dataclass(frozen=True, slots=True)
class RuleOptions:
    """The rule options of a command."""

    only: Sequence[str] = ()
    """Rules to use; empty means all."""
    skip: Sequence[str] = ()
    rules: Sequence[str] = ()
    """`name` with its default action, or `name=action`."""
    thresholds: Sequence[str] = ()
    """`rule.threshold=value`; without the rule if only one rule has the threshold."""
    redact: bool = False


def resolve_rules(options: RuleOptions, file: ConfigSource | None = None) -> CleanSettings:
    """Merge the settings of a file with the options, which have priority.

    Raises:
        ConfigError: one message with all errors.
    """
    settings = _Settings()
    for written, setting in (file or {}).items():
        settings.from_file(written, setting.value, setting.origin)
    for written in options.rules:
        name, _, action = written.partition("=")
        settings.action(name, action or "on", "--rule")
    if options.redact:
        settings.action("personal-data", "change", "--redact")
    for written in options.thresholds:
        settings.threshold(written)
    settings.select(options.only, options.skip)
    return settings.validated()


class _Settings:
    """Values by rule, the origin of each value, and the errors."""

    def __init__(self) -> None:
        self._rules = CleanSettings().rules()
        self._values: dict[str, dict[str, object]] = {}
        self._origins: dict[tuple[str, str], str] = {}
        self._requested: dict[str, str] = {}
        """Rules named explicitly -> origin; required settings must not be missing."""
        self._problems: list[str] = []

    def from_file(self, written: str, value: object, origin: str) -> None:
        name = self._resolve_name(written, origin)
        if name is None or value is None:
            return
        if isinstance(value, bool | str):
            self.action(name, value, origin)
        elif isinstance(value, Mapping):
            self._requested[name] = origin
            for key, item in value.items():
                if key == "action":
                    self.action(name, item, origin)
                else:
                    self._set(name, hyphenated(str(key)), item, origin)
        else:
            self._problems.append(f"{origin}: {name} is {value!r}; give an action, or thresholds")

    def action(self, written: str, action: object, origin: str) -> None:
        name = self._resolve_name(written, origin)
        if name is None:
            return
        # YAML 1.1 reads a bare `on` as True and `off` as False.
        if action in (True, "on"):
            action = self._rules[name].action
        elif action is False:
            action = "off"
        self._set(name, "action", action, origin)
        if action == "off":
            self._requested.pop(name, None)
        else:
            self._requested[name] = origin

    def threshold(self, written: str) -> None:
        import yaml

        path, equals, text = written.partition("=")
        if not equals:
            self._problems.append(f"--set {written}: write it as --set rule.threshold=value")
            return
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        rule, dot, key = path.rpartition(".")
        key = hyphenated(key)
        if dot:
            name = self._resolve_name(rule, "--set")
            if name is not None:
                self._set(name, key, value, "--set")
            return
        matches = [name for name, known in self._keys().items() if key in known]
        if len(matches) == 1:
            self._set(matches[0], key, value, "--set")
        elif matches:
            choices = " or ".join(f"--set {name}.{key}" for name in matches)
            self._problems.append(f"--set {key}: several rules have it; write {choices}")
        else:
            near = did_you_mean(
                key, [key for known in self._keys().values() for key in known], cutoff=0.8
            )
            self._problems.append(f"--set {key}: no rule has such a threshold" + _suggestion(near))

    def select(self, only: Sequence[str], skip: Sequence[str]) -> None:
        selected = [name for written in only if (name := self._resolve_name(written, "--only"))]
        skipped = [name for written in skip if (name := self._resolve_name(written, "--skip"))]
        if both := sorted({*selected} & {*skipped}):
            self._problems.append(f"{', '.join(both)}: --only and --skip contradict each other")
        for name in selected:
            self._requested.setdefault(name, "--only")
        rest = [name for name in self._rules if name not in selected] if only else []
        for name in (*skipped, *rest):
            self.action(name, "off", "--skip")

    def validated(self) -> CleanSettings:
        from pydantic import ValidationError

        found = None
        try:
            found = CleanSettings.model_validate(self._values)
        except ValidationError as error:
            self._problems += map(self._problem, error.errors())
        for name, rule in found.rules().items() if found else ():
            if name in self._requested and rule.missing:
                self._problems.append(f"{self._requested[name]}: {name} needs {rule.missing}")
        if found is None or self._problems:
            raise ConfigError(
                "\n".join(self._problems), hint="`llmctl data clean --list-rules` shows all rules"
            )
        return found

    def _resolve_name(self, written: str, origin: str) -> str | None:
        name = hyphenated(written.strip())
        if name in self._rules:
            return name
        self._problems.append(
            f"{origin}: there is no rule {written!r}"
            + _suggestion(did_you_mean(name, self._rules, cutoff=0.8))
        )
        return None

    def _keys(self) -> dict[str, list[str]]:
        return {
            name: [hyphenated(key) for key in type(rule).model_fields if key != "action"]
            for name, rule in self._rules.items()
        }

    def _set(self, rule: str, key: str, value: object, origin: str) -> None:
        if key != "action" and key not in self._keys()[rule]:
            near = did_you_mean(key, self._keys()[rule], cutoff=0.8)
            self._problems.append(f"{origin}: {rule} has no {key!r}" + _suggestion(near))
            return
        self._values.setdefault(rule, {})[key] = value
        self._origins[rule, key] = origin

    def _problem(self, details: "ErrorDetails") -> str:
        rule, key = (*map(str, details["loc"]), "action")[:2]
        what = details["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        value: Any = self._values[rule].get(key)
        origin = self._origins.get((rule, key), "default")
        return f"{origin}: {rule}.{key} is {value!r}: {what}"


def _suggestion(near: str | None) -> str:
    return f"; did you mean {near}?" if near else ""
