"""What the data classes accept, refuse and compute."""

import numpy as np
import pytest

from spiketide.errors import ParameterError, ShapeError
from spiketide.report import Constants, ReportData, Row, SampleTrace, Strip, choose_samples


def trace(scores, prediction, **other):
    return SampleTrace(label=0, prediction=prediction, scores=np.array(scores), **other)


def test_final_from_is_the_step_after_the_last_one_that_another_class_leads():
    scores = [[0, 1, 0], [2, 1, 0], [1, 2, 0], [3, 2, 0], [4, 2, 0]]
    assert trace(scores, 0).final_from == 3
    assert trace([[1.0, 0.0]] * 3, 0).final_from == 0


def test_final_from_claims_nothing_on_a_tie_a_wrong_leader_or_missing_scores():
    assert trace([[0.0, 0.0]], 0).final_from is None
    assert trace([[0.0, 1.0]], 0).final_from is None
    assert trace([[1.0, float("nan")]], 0).final_from is None
    assert SampleTrace(label=0, prediction=0, input=np.ones((3, 2))).final_from is None


def test_final_from_looks_at_valid_steps_only():
    scores = [[0, 1], [2, 1], [0, 1]]
    assert trace(scores, 0, lengths=2).final_from == 1
    assert trace(scores, 0).final_from is None
    assert trace(scores, 0, lengths=0).final_from is None


def test_features_are_flattened_and_lengths_default_to_all_steps():
    sample = SampleTrace(label=0, prediction=0, input=np.zeros((7, 2, 3, 4)), hidden={"a": np.zeros(7)})
    assert sample.input.shape == (7, 24)
    assert sample.hidden["a"].shape == (7, 1)
    assert sample.lengths == 7
    assert sample.correct


def test_threshold_is_spread_over_steps_and_neurons():
    sample = SampleTrace(label=0, prediction=1, membrane={"a": np.zeros((4, 2))}, threshold={"a": [1.0, 2.0]})
    assert sample.threshold["a"].shape == (4, 2)
    assert sample.threshold["a"][3].tolist() == [1.0, 2.0]
    assert not sample.correct


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"input": np.zeros((4, 2)), "scores": np.zeros((5, 3))}, "same T"),
        ({"input": np.array(1.0)}, r"\(T, \*N\)"),
        ({"input": np.array([["a"]])}, "numeric"),
        ({"input": np.zeros((4, 2)), "lengths": 5}, r"0\.\.4"),
        ({"membrane": {"a": np.zeros((4, 2))}, "threshold": {"a": [1.0, 2.0, 3.0]}}, r"\(2,\)"),
        ({"membrane": {"a": np.zeros((4, 2))}, "neurons": {"a": [1]}}, "2 neuron indices"),
        ({"membrane": {"a": np.zeros((4, 2))}, "adaptation": {"a": np.zeros((4, 3))}}, r"\(4, 2\), like its"),
        ({"membrane": {"a": np.zeros((4, 2))}, "adaptation": {"a": np.zeros((5, 2))}}, "same T"),
    ],
)
def test_a_trace_refuses_arrays_that_do_not_fit(arguments, words):
    with pytest.raises(ShapeError, match=words):
        SampleTrace(label=0, prediction=0, **arguments)


def test_a_layer_name_that_is_not_there_gets_the_nearest_one():
    with pytest.raises(ParameterError, match="adaptation: .*did you mean 'lif1'"):
        SampleTrace(
            label=0, prediction=0, membrane={"lif1": np.zeros((4, 2))}, adaptation={"lif_1": np.zeros((4, 2))}
        )
    with pytest.raises(ParameterError, match="did you mean 'lif1'"):
        SampleTrace(label=0, prediction=0, membrane={"lif1": np.zeros((4, 2))}, threshold={"lif_1": 1.0})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"confusion": np.zeros((2, 3))}, ShapeError, r"\(C, C\)"),
        ({"confusion": np.zeros((0, 0))}, ShapeError, r"\(C, C\)"),
        ({"confusion": [[0.5, 0.5], [0, 1]]}, ParameterError, "whole counts"),
        ({"confusion": [[-1, 0], [0, 1]]}, ParameterError, "whole counts"),
        ({"confusion": [[float("inf"), 0], [0, 1]]}, ParameterError, "whole counts"),
        ({"confusion": [[1, 0], [0, 1]], "class_names": ["a"]}, ShapeError, "2 class names"),
        ({"curves": {"loss": [(0, 1.0)]}}, ParameterError, r"\(epoch, train, validation\)"),
        ({"missing": {"curve": "none"}}, ParameterError, "did you mean 'curves'"),
        ({"firing": {"lif": [-0.1]}}, ParameterError, ">= 0"),
        ({"unit": " "}, ParameterError, "plural"),
        ({"over_time": {"test": [[0.5]]}}, ShapeError, r"\(T,\)"),
        ({"over_time": {"test": []}}, ShapeError, "1 or more"),
        ({"over_time": {"test": [50.0, 80.0]}}, ParameterError, "not percent"),
        ({"over_time": {"test": [0.5, float("inf")]}}, ParameterError, "0 to 1"),
        ({"class_names": ["a"], "strips": [Strip([0], [1])]}, ParameterError, "classes of strip 0"),
        (
            {"class_names": ["a"], "samples": [SampleTrace(label=0, prediction=1)]},
            ParameterError,
            "prediction of sample 0",
        ),
        (
            {"class_names": ["a", "b"], "samples": [trace([[1.0, 2.0, 3.0]], 1)]},
            ShapeError,
            "one column per class",
        ),
    ],
)
def test_report_data_refuses_what_contradicts_itself(arguments, error, words):
    with pytest.raises(error, match=words):
        ReportData(title="run", **arguments)


def test_report_data_is_put_in_order():
    data = ReportData(
        title="run",
        summary=[("a", 1), Row("b", None, "why")],
        curves={"loss": [(2, 1, None), (1, None, 2)]},
        confusion=[[3, 1], [0, 4]],
        firing={"lif": np.ones((2, 3))},
    )
    assert data.summary == (Row("a", 1, ""), Row("b", None, "why"))
    assert data.curves["loss"] == ((1, None, 2.0), (2, 1.0, None))
    assert data.class_names == ("0", "1")
    assert data.firing["lif"].shape == (6,)
    assert data.accuracy == 7 / 8
    assert ReportData(title="run", confusion=[[0, 0], [0, 0]]).accuracy is None


def test_class_names_come_from_the_samples_when_nothing_else_tells_them():
    data = ReportData(title="run", samples=[trace([[1.0, 2.0, 3.0]], 1)])
    assert data.class_names == ("0", "1", "2")


def test_choose_samples_takes_another_class_each_time_and_some_errors():
    labels = [0, 0, 0, 1, 1, 2, 2]
    given = [0, 0, 0, 1, 0, 2, 1]
    assert choose_samples(labels, given, 4, wrong=1) == [0, 3, 5, 4]
    assert choose_samples(labels, given, 5, wrong=2) == [0, 3, 5, 4, 6]
    assert choose_samples(labels, labels, 3) == [0, 3, 5]
    assert choose_samples([0, 1], [1, 0], 6) == [0, 1]
    assert choose_samples([], [], 6) == []


def test_choose_samples_refuses_what_it_cannot_count():
    with pytest.raises(ShapeError):
        choose_samples([0, 1], [0])
    with pytest.raises(ParameterError):
        choose_samples([0], [0], 0)
    with pytest.raises(ParameterError):
        choose_samples([0], [0], 2, wrong=3)


def test_a_sequence_without_one_label_is_neither_right_nor_wrong():
    for label, prediction in ((None, None), (0, None), (None, 0)):
        sample = SampleTrace(label=label, prediction=prediction, scores=np.array([[1.0, 0.0]]))
        assert sample.correct is None
        assert sample.final_from == (None if prediction is None else 0)
        data = ReportData(title="run", samples=[sample])
        assert data.class_names == ("0", "1")


def test_a_strip_counts_labelled_steps_only():
    strip = Strip(np.array([0, 1, -1, 2, 2]), [0, 0, 1, 2, -1], np.zeros((5, 2, 3)))
    assert strip.wrong.tolist() == [False, True, False, False, True]
    assert strip.accuracy == 0.5 and strip.input.shape == (5, 6)
    assert Strip([-1, -1], [0, 1]).accuracy is None
    assert ReportData(title="run", strips=[strip]).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"labels": [[0]], "predictions": [0]}, ShapeError, r"labels as \(T,\)"),
        ({"labels": [], "predictions": []}, ShapeError, "1 or more"),
        ({"labels": [0.0], "predictions": [0]}, ShapeError, "float64"),
        ({"labels": [0], "predictions": [-2]}, ParameterError, "predictions of 0 or more"),
        ({"labels": [0, 1], "predictions": [0]}, ShapeError, "got 1 and 2"),
        ({"labels": [0], "predictions": [0], "input": np.zeros((2, 3))}, ShapeError, "input of 1 steps"),
        ({"labels": [0], "predictions": [0], "channels": ["a"]}, ShapeError, "0 channel names"),
        ({"labels": [0], "predictions": [0], "step_ms": 0}, ParameterError, "step_ms > 0"),
        ({"labels": [0], "predictions": [0], "step_ms": float("nan")}, ParameterError, "step_ms > 0"),
    ],
)
def test_a_strip_refuses_what_does_not_fit(arguments, error, words):
    with pytest.raises(error, match=words):
        Strip(**arguments)


def test_constants_are_logarithmic_when_positive_and_more_than_a_factor_of_four_apart():
    assert Constants([1.0], [4.1]).logarithmic and Constants(None, [1.0, 4.1]).logarithmic
    assert not Constants([1.0], [4.0]).logarithmic
    assert not Constants([0.0], [9.0]).logarithmic and not Constants(None, [-1.0, 9.0]).logarithmic
    assert Constants([1.0, 2.0], [float("nan"), 9.0]).logarithmic
    assert not Constants(None, [float("nan")]).logarithmic
    assert Constants(None, np.ones((2, 3))).trained.shape == (6,)


@pytest.mark.parametrize(
    ("begun", "trained", "words"),
    [
        (None, [], "1 or more"),
        (None, ["a"], "trained as"),
        ([1.0], [1.0, 2.0], "got 1 and 2"),
        ([], [1.0], "begun as"),
    ],
)
def test_constants_refuse_what_does_not_fit(begun, trained, words):
    with pytest.raises(ShapeError, match=words):
        Constants(begun, trained)
