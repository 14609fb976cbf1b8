from __future__ import annotations

import numpy as np
import pytest

from nnunet_qa.errors import CurveError, SelectionError
from nnunet_qa.quality.curves import SCHEMES, Acquisition, LabelScheme, acquisition_of, count_pixels
from tests.small_cine import SPACING, aorta, heart, itk_sizes


@pytest.mark.parametrize(("scheme", "values"), [("ukbb", (1, 2, 3)), ("acdc", (3, 2, 1))])
def test_volumes_are_those_of_simpleitk(scheme: str, values: tuple[int, int, int]) -> None:
    labels = heart(scheme=values)
    acquisition = acquisition_of(labels, SPACING, SCHEMES[scheme], acquisition_id="a", subject_id="s")
    assert (acquisition.frames, acquisition.subject_id) == (6, "s")
    assert set(acquisition.curves()) == {"lv", "myocardium", "rv"}
    for structure, value in zip(("lv", "myocardium", "rv"), values, strict=True):
        curve = acquisition.curve(structure)
        assert curve.dtype == np.float64
        assert np.ptp(curve) > 1
        np.testing.assert_allclose(curve, itk_sizes(labels, value) / 1000, rtol=1e-6)


def test_areas_are_those_of_simpleitk() -> None:
    labels = aorta()
    acquisition = acquisition_of(labels, SPACING, SCHEMES["ukbb_ao"], acquisition_id="a")
    assert acquisition.subject_id == "a"
    for structure, value in (("ascending_aorta", 1), ("descending_aorta", 2)):
        np.testing.assert_allclose(acquisition.curve(structure), itk_sizes(labels, value), rtol=1e-6)


def test_pixels_are_counted_slice_by_slice_in_any_type() -> None:
    labels = np.random.default_rng(0).integers(0, 4, (3, 2, 5, 7))
    expected = [[np.bincount(image.ravel(), minlength=4)[1:] for image in frame] for frame in labels]
    for kind in (np.uint8, np.int16, np.float32, ">i4"):
        counts = count_pixels(labels.astype(kind), SCHEMES["ukbb"], name="a")
        np.testing.assert_array_equal(np.stack(list(counts.values()), axis=-1), expected)
        assert counts["lv"].dtype == np.int64
    strided = np.asfortranarray(labels)
    np.testing.assert_array_equal(count_pixels(strided, SCHEMES["ukbb"], name="a")["lv"], np.array(expected)[..., 0])


def test_a_scheme_of_your_own() -> None:
    scheme = LabelScheme.custom("la=7, lv=2", kind="area", end_diastole="first")
    assert scheme == LabelScheme(name="custom", values={"la": 7, "lv": 2}, kind="area", end_diastole="first")
    labels = np.zeros((2, 1, 3, 3))
    labels[1, 0, 0] = 7
    acquisition = acquisition_of(labels, (1.0, 2.0, 3.0), scheme, acquisition_id="a")
    assert {name: curve.tolist() for name, curve in acquisition.curves().items()} == {"la": [0, 18], "lv": [0, 0]}


@pytest.mark.parametrize("name", list(SCHEMES))
def test_schemes_go_by_their_names(name: str) -> None:
    assert LabelScheme.named(name) is SCHEMES[name]


def test_a_text_is_a_name_or_a_scheme_of_your_own() -> None:
    assert LabelScheme.parse("acdc") is SCHEMES["acdc"]
    assert LabelScheme.parse("lv=1, rv=3") == LabelScheme.custom("lv=1,rv=3")
    own = LabelScheme.parse("lv=1", kind="area", end_diastole="first")
    assert own == LabelScheme(name="custom", values={"lv": 1}, kind="area", end_diastole="first")
    assert LabelScheme.parse("lv=1", end_diastole="first").kind == "volume"
    with pytest.raises(SelectionError, match=r'"ukbb" has its own kind and end-diastole; leave out end_diastole, or'):
        LabelScheme.parse("ukbb", end_diastole="first")  # even where it is its own
    with pytest.raises(SelectionError, match='unknown end-diastole "last"; choose first or largest'):
        LabelScheme.parse("lv=1", end_diastole="last")
    with pytest.raises(SelectionError, match='unknown label scheme "acd"'):
        LabelScheme.parse("acd")
    with pytest.raises(SelectionError, match='"lv=" is not structure=value'):
        LabelScheme.parse("lv=")


def test_an_unknown_scheme_is_named_with_the_nearest() -> None:
    with pytest.raises(
        SelectionError, match=r'unknown label scheme "ukb" \(did you mean "ukbb"\?\); schemes are ukbb,'
    ):
        LabelScheme.named("ukb")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lv", '"lv" is not structure=value'),
        ("lv=0", '"lv=0" is not structure=value'),
        ("lv=1.5", '"lv=1.5" is not'),
        ("LV=1", '"LV=1" is not'),
        ("lv=1,", '"" is not structure=value'),
        ("lv=1,lv=2", '"lv=2" repeats a structure or a value'),
        ("lv=1,rv=1", '"rv=1" repeats a structure or a value'),
    ],
)
def test_a_wrong_scheme_of_your_own_is_refused(text: str, said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        LabelScheme.custom(text)


@pytest.mark.parametrize(("setting", "said"), [("kind", "unknown kind of curve"), ("end_diastole", "unknown end-")])
def test_an_unknown_setting_of_a_scheme_is_refused(setting: str, said: str) -> None:
    with pytest.raises(SelectionError, match=said):
        LabelScheme.custom("lv=1", **{setting: "biggest"})  # type: ignore[arg-type]


def of(labels: np.ndarray, *, scheme: str = "ukbb", spacing: tuple[float, float, float] = SPACING) -> Acquisition:
    return acquisition_of(labels, spacing, SCHEMES[scheme], acquisition_id="S1")


def test_a_series_that_gives_no_curve_is_refused() -> None:
    labels = heart()
    with pytest.raises(CurveError, match="S1: has one frame only"):
        of(labels[:1])
    with pytest.raises(CurveError, match="S1: has 3 axes, a series has 4"):
        of(labels[0])
    for spacing in ((0.0, 1.0, 1.0), (1.0, float("nan"), 1.0), (1.0, 1.0, -1.0)):
        with pytest.raises(CurveError, match=r"S1: the spacing .* is not three sizes above 0 mm"):
            of(labels, spacing=spacing)
    with pytest.raises(CurveError, match="S1: has 3 slices, but the area over time needs a series of one"):
        of(np.minimum(labels, 2), scheme="ukbb_ao")


def test_unknown_labels_are_named() -> None:
    labels = heart().astype(float)
    labels[1, 0, 0, :3] = (9, 4, np.nan)
    with pytest.raises(CurveError, match=r'S1: label value 4, 9, nan is not in the label scheme "ukbb" \(lv 1, my'):
        of(labels)


def test_structures_are_checked() -> None:
    acquisition = of(heart())
    with pytest.raises(CurveError, match=r'no structure "myocard" \(did you mean "myocardium"\?\)'):
        acquisition.curve("myocard")

    def made(**pixels: np.ndarray) -> Acquisition:
        settings = {"spacing": SPACING, "scheme": SCHEMES["ukbb"], "acquisition_id": "S1", "subject_id": "S1"}
        return Acquisition(pixels=pixels, **settings)  # type: ignore[arg-type]

    counts = np.ones((4, 2), np.int64)
    assert list(made(lv=counts).curves()) == ["lv"]
    with pytest.raises(SelectionError, match='"la" is not in the label scheme "ukbb"'):
        made(la=counts)
    for wrong in ({}, {"lv": counts, "rv": counts[:3]}, {"lv": counts * 0.5}, {"lv": counts[0]}):
        with pytest.raises(ValueError, match="needs"):
            made(**wrong)
