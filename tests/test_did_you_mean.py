"""Suggestions for misspelt names."""

from llmctl.did_you_mean import close_matches, did_you_mean


def test_the_most_similar_name_is_suggested_whatever_its_case() -> None:
    assert did_you_mean("QWEN3-0.6", ["Qwen3-0.6B", "smollm2"]) == "Qwen3-0.6B"
    assert did_you_mean("unlike", ["Qwen3-0.6B", "smollm2"]) is None
    assert did_you_mean("anything", []) is None


def test_the_cutoff_and_the_limit_bound_the_suggestions() -> None:
    known = ["question", "questions", "query"]
    assert did_you_mean("question_id", known, cutoff=0.85) is None
    assert close_matches("questio", known, limit=2) == ["question", "questions"]
