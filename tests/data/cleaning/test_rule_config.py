"""Rule settings from options and files, and the messages for wrong ones."""

from pathlib import Path

import pytest

from llmctl.config.settings import read_config_file
from llmctl.data.cleaning.rule_config import RuleOptions, resolve_rules
from llmctl.errors import ConfigError


def on(choices: RuleOptions) -> set[str]:
    return {name for name, rule in resolve_rules(choices).rules().items() if rule.is_on}


def test_rules_with_a_required_threshold_are_off_without_it() -> None:
    assert {"length", "language"}.isdisjoint(on(RuleOptions()))
    assert "length" in on(RuleOptions(thresholds=["min-answer-tokens=4"]))
    assert "language" in on(RuleOptions(thresholds=["language.keep=zh,en"]))


def test_only_and_skip_select_rules() -> None:
    assert on(RuleOptions(only=["near-duplicates", "unicode"])) == {"near-duplicates", "unicode"}
    assert on(RuleOptions()) - on(RuleOptions(skip=["refusal"])) == {"refusal"}


def test_options_set_the_actions_of_rules() -> None:
    found = resolve_rules(RuleOptions(rules=["refusal=remove", "whitespace=off"], redact=True))
    assert found.refusal.action == "remove"
    assert not found.whitespace.is_on
    assert found.personal_data.action == "change"


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("near-duplicates: {threshold: 0.9}\nunicode: off\nrefusal: remove\n")
    found = resolve_rules(RuleOptions(thresholds=["threshold=0.7"]), read_config_file(file))
    assert found.near_duplicates.threshold == 0.7
    assert not found.unicode.is_on
    assert found.refusal.action == "remove"


def test_all_errors_are_in_one_message_with_their_origin(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text("refusl: remove\nnear-duplicates:\n  threshold: high\nlanguage: on\n")
    choices = RuleOptions(
        rules=["unicode=remove"],
        thresholds=["min-units=3", "treshold=1", "refusal.max=2"],
        only=["empty"],
        skip=["empty"],
    )
    with pytest.raises(ConfigError) as failed:
        resolve_rules(choices, read_config_file(file))
    text = str(failed.value)
    assert f"{file}:1: there is no rule 'refusl'; did you mean refusal?" in text
    assert f"{file}:2: near-duplicates.threshold is 'high'" in text
    assert "several rules have it" in text
    assert "did you mean threshold?" in text
    assert "refusal has no 'max'" in text
    assert "--only and --skip contradict" in text


def test_a_requested_rule_without_its_threshold_is_an_error() -> None:
    with pytest.raises(ConfigError, match="length needs a limit, such as max-tokens=2048"):
        resolve_rules(RuleOptions(only=["length"]))
