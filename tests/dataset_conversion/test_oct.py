"""What the OCT conversions share: framing, sizes, the way back."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.transform import resize, resize_local_mean

from nnunet_qa.data.phantoms import SubjectLook, draw_bscan
from nnunet_qa.dataset_conversion.oct import PLACE, Framing, parse_size, restore, scale_of
from nnunet_qa.errors import CaseTableError, DatasetError, ImageError


def place(*numbers: int) -> dict[str, object]:
    return {"case_id": "S01_bscan00", **dict(zip(PLACE, numbers, strict=True))}


@pytest.mark.parametrize("shape", [(320, 768), (321, 512), (90, 100), (70, 150), (80, 192)])
def test_images_are_shrunk_as_scikit_image_does(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    expected = resize(image.astype(float), (80, 192), order=1, anti_aliasing=True)
    found = Framing().image(image)
    assert found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 0.5 + 1e-9


def test_masks_are_shrunk_by_area() -> None:
    mask = np.zeros((320, 768), dtype=bool)
    mask[8:10, 8:12] = True  # exactly half of one pixel
    mask[40:41, 40:47] = True  # less than half of two
    expected = mask.reshape(80, 4, 192, 4).mean(axis=(1, 3)) >= 0.5
    shrunk = Framing().mask(mask)
    np.testing.assert_array_equal(shrunk, expected)
    assert shrunk.dtype == np.uint8
    assert shrunk.sum() == 1


def test_of_several_fluids_the_largest_part_decides() -> None:
    mask = np.zeros((320, 768), dtype=np.uint8)
    mask[0, :4], mask[1, :4], mask[2, :3] = 1, 3, 3  # 4 and 7 of 16
    mask[4:6, 0:2], mask[4:6, 2:4] = 2, 1  # half of the pixel, in equal parts
    mask[8, :4], mask[9, :3] = 3, 1  # 7 of 16
    shrunk = Framing().mask(mask)
    assert shrunk.dtype == np.uint8
    assert shrunk[:3, 0].tolist() == [3, 1, 0]
    assert np.count_nonzero(shrunk) == 2
    assert not Framing().mask(np.zeros((320, 768), dtype=np.uint8)).any()
    np.testing.assert_array_equal(Framing(size=None).mask(mask), mask)


@pytest.mark.parametrize("size", [(80, 192), (77, 131), (400, 900)])
def test_masks_are_what_local_means_give(size: tuple[int, int]) -> None:
    row, column = np.indices((320, 768))
    mask = ((row - 150) ** 2 + (column - 300) ** 2 < 60**2).astype(np.uint8) * 2
    mask[200:230] = 1  # nothing but fluid from side to side
    shares = [resize_local_mean((mask == fluid).astype(float), size) for fluid in (1, 2)]
    expected = np.where(np.sum(shares, axis=0) >= 0.5 - 1e-6, np.argmax(shares, axis=0) + 1, 0)
    np.testing.assert_array_equal(Framing(size=size).mask(mask), expected)
    assert (Framing(size=size).mask(np.ones_like(mask)) == 1).all()


def test_masks_keep_their_area_also_at_odd_sizes() -> None:
    rng = np.random.default_rng(0)
    mask = draw_bscan(rng, look=SubjectLook.draw(rng, severity=1.0)).fluid[60:380] > 0
    for size in ((80, 192), (77, 131), (320, 384)):
        part = Framing(size=size).mask(mask).mean()
        assert part == pytest.approx(mask.mean(), rel=0.08)


def test_images_are_filtered_before_they_are_sampled() -> None:
    stripes = np.zeros((320, 768), dtype=np.uint8)
    stripes[:, ::2] = 200
    shrunk = Framing().image(stripes)
    assert shrunk.shape == (80, 192)
    assert shrunk.dtype == np.uint8
    assert shrunk[:, 4:-4] == pytest.approx(100, abs=6)  # sampling alone would give 0 or 200


def test_image_and_mask_stay_on_one_another() -> None:
    row, column = np.indices((320, 768))
    blob = (row - 201) ** 2 + (column - 333) ** 2 < 40**2
    image, mask = Framing().image(blob.astype(np.uint8) * 255), Framing().mask(blob)
    assert ndimage.center_of_mass(image) == pytest.approx(ndimage.center_of_mass(mask), abs=0.05)
    assert ndimage.center_of_mass(mask) == pytest.approx(((201 + 0.5) / 4 - 0.5, (333 + 0.5) / 4 - 0.5), abs=0.05)


def test_images_agree_with_another_library() -> None:
    rng = np.random.default_rng(0)
    crop = draw_bscan(rng, look=SubjectLook.draw(rng), padding=False).image[60:380]
    ours = Framing().image(crop).astype(float)
    pillow = np.asarray(Image.fromarray(crop).resize((192, 80), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(ours - pillow).mean() < 4
    assert np.corrcoef(ours.ravel(), pillow.ravel())[0, 1] > 0.98


def test_native_size_changes_nothing() -> None:
    image = np.arange(96, dtype=np.uint8).reshape(8, 12)
    framing = Framing(size=None)
    np.testing.assert_array_equal(framing.image(image), image)
    np.testing.assert_array_equal(framing.mask(image > 5), image > 5)


def test_restore_is_the_inverse_at_native_size() -> None:
    mask = np.random.default_rng(0).integers(0, 3, size=(20, 30)).astype(np.uint8)
    native = restore(mask, place(5, 0, 20, 30, 40, 30))
    assert native.shape == (40, 30)
    assert native.dtype == np.uint8
    np.testing.assert_array_equal(native[5:25], mask)
    assert not native[:5].any()
    assert not native[25:].any()


def test_restore_and_shrink_is_the_identity_on_converted_masks() -> None:
    mask = (np.random.default_rng(0).random((80, 192)) > 0.7).astype(np.uint8)
    native = restore(mask, place(84, 0, 320, 768, 496, 768))
    np.testing.assert_array_equal(native[84:404], np.kron(mask, np.ones((4, 4), dtype=np.uint8)))
    np.testing.assert_array_equal(Framing().mask(native[84:404] > 0), mask)


def test_the_round_trip_of_a_native_mask_keeps_most_of_it() -> None:
    rng = np.random.default_rng(0)
    fluid = draw_bscan(rng, look=SubjectLook.draw(rng, severity=1.0)).fluid > 0
    back = restore(Framing().mask(fluid[50:370]), place(50, 0, 320, 768, 496, 768)) > 0
    assert 2 * (back & fluid).sum() / (back.sum() + fluid.sum()) > 0.9


def test_restore_takes_the_texts_of_a_csv_file_and_refuses_nonsense() -> None:
    mask = np.ones((8, 8), dtype=np.uint8)
    texts = {key: str(value) for key, value in place(0, 0, 8, 8, 16, 8).items()}
    assert restore(mask, texts).sum() == 64
    with pytest.raises(CaseTableError, match="must hold whole numbers in crop_row"):
        restore(mask, {"case_id": "x"})
    with pytest.raises(ImageError, match="leaves the B-scan of 16 x 8"):
        restore(mask, place(10, 0, 8, 8, 16, 8))
    with pytest.raises(ImageError, match=r"found shape \(8, 8, 1\)"):
        restore(mask[..., None], place(0, 0, 8, 8, 16, 8))


@pytest.mark.parametrize("text", ["80x192", " 80 X 192", "80×192"])
def test_sizes(text: str) -> None:
    assert parse_size(text) == (80, 192)
    assert parse_size("Native") is None


@pytest.mark.parametrize("text", ["80", "80x", "axb", "-8x9", ""])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(DatasetError, match="neither ROWSxCOLUMNS"):
        parse_size(text)


def test_framings_that_make_no_sense() -> None:
    with pytest.raises(DatasetError, match="needs the crop"):
        Framing(crop=False, crop_rows=100)
    with pytest.raises(DatasetError, match="at least 8 rows"):
        Framing(crop_rows=2)
    with pytest.raises(DatasetError, match="--size 2x9 is too small"):
        Framing(size=(2, 9))


@pytest.mark.parametrize(
    ("pixels", "scale"),
    [
        (np.array([0, 255], dtype=np.uint8), 1.0),
        (np.array([0.0, 200.0]), 1.0),
        (np.array([0.0, 1.0]), 255.0),
        (np.array([0, 65535], dtype=np.uint16), 1 / 257),
        (np.array([0, 255], dtype=np.uint16), 1.0),
    ],
)
def test_scales(pixels: np.ndarray, scale: float) -> None:
    assert scale_of(pixels, "x") == scale


@pytest.mark.parametrize("pixels", [np.array([-1.0, 3.0]), np.array([0, 300], dtype=np.int32), np.array([0.0, 3e4])])
def test_intensities_that_fit_no_scale(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match="x: intensities from"):
        scale_of(pixels, "x")
