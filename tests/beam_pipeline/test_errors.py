import pickle

import pytest

import headct.errors
from beam_pipeline import errors
from beam_pipeline.errors import AlreadyComplete, Refusal, RunnerError, TooManyRejects
from headct.errors import (
    HeadctError,
    Interrupted,
    ObjectRefused,
    OutputError,
    StoreError,
    UsageError,
)
from headct.reasons import Reason, Rejected

EXAMPLES = [
    UsageError("--folds 1: want 2 to 100"),
    TooManyRejects(33, {"not_dicom": 1, "label_missing": 2}, 0.05, "Most are x"),
    StoreError("s3://bucket", "access denied"),
    ObjectRefused("s3://bucket", "a web page", "check the endpoint"),
    OutputError("cannot write x in out: No space left on device"),
    RunnerError("FlinkRunner failed: no slots"),
    Interrupted("interrupted; the same command resumes"),
    Refusal("12 of 33 files were rejected", 3),
    AlreadyComplete("out is complete"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_is_the_same_in_another_process(error: HeadctError) -> None:
    """Workers send errors to the process that started them, and Beam's steps to each other."""
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert type(again) is type(error)
        assert (str(again), again.exit_code) == (str(error), error.exit_code)


def test_a_rejection_is_the_same_in_another_process() -> None:
    again = pickle.loads(pickle.dumps(Rejected(Reason.NOT_CT, "MR")))
    assert (again.reason, again.detail) == (Reason.NOT_CT, "MR")


def test_all_kinds_of_errors_are_among_the_examples() -> None:
    known = [*vars(errors).values(), *vars(headct.errors).values()]
    kinds = {kind for kind in known if isinstance(kind, type) and issubclass(kind, HeadctError)}
    expected = kinds - {HeadctError, headct.errors.StorageError}
    assert {type(error) for error in EXAMPLES} == expected


def test_each_reason_says_what_to_do() -> None:
    for reason in Reason:
        assert reason.advice.endswith("."), reason
        assert Reason(reason.value) is reason
    assert len({reason.advice for reason in Reason}) == len(Reason)


def test_a_message_is_one_line_with_what_to_do() -> None:
    many, store = str(EXAMPLES[1]), str(EXAMPLES[2])
    assert many == (
        "3 of 33 files were rejected (label_missing 2, not_dicom 1), more than the allowed "
        "fraction 0.05. Most are x; correct that and start again, or raise --max_reject_fraction"
    )
    assert store == "s3://bucket: access denied; the same command resumes"


def test_an_exit_code_says_whose_turn_it_is() -> None:
    assert [error.exit_code for error in EXAMPLES] == [2, 3, 5, 5, 5, 1, 130, 3, 0]
