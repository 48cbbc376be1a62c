import pytest

from llmctl.evaluation.scoring.stats import holm, mcnemar, paired_bootstrap, standard_error, wilson


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    # Brown, Cai, DasGupta (2001) and R's prop.test(15, 50, correct = FALSE)
    assert wilson(15, 50) == pytest.approx((0.1910, 0.4375), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_standard_error_is_that_of_lm_evaluation_harness() -> None:
    assert standard_error(46, 135) == pytest.approx(0.0409, abs=1e-4)
    assert standard_error(23, 100) == pytest.approx(0.042295258468165065)
    assert standard_error(1, 1) is None


def test_mcnemar_counts_only_what_flipped() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(0.021484375)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(600, 1200) < 1e-40


def test_a_difference_that_is_none_has_zero_in_its_interval() -> None:
    low, high = paired_bootstrap([1, -1, 0, 0] * 50)
    assert low < 0 < high
    low, high = paired_bootstrap([1] * 40 + [0] * 160)
    assert 0.14 < low < 0.2 < high < 0.27
    assert paired_bootstrap([0] * 10) == (0.0, 0.0)


def test_holm_makes_several_small_values_honest() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
