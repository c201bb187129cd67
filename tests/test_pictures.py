"""Pictures and masks: every kind of file gives the pixels that a viewer shows, and what is no picture is refused in one sentence."""

import runpy
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from minidiff.pictures import fitted, inked, mask, read

PICTURES = Path(__file__).parent.parent / "data" / "pictures"


def quarters(size=(4, 4), mode="RGB"):
    """Red, green, blue, white quarters."""
    picture = Image.new("RGB", size, "white")
    w, h = size[0] // 2, size[1] // 2
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        picture.paste(colour, (i % 2 * w, i // 2 * h, i % 2 * w + w, i // 2 * h + h))
    return picture.convert(mode)


@pytest.mark.parametrize("name, options", [("a.png", {}), ("a.webp", {"lossless": True}), ("a.jpg", {"quality": 100, "subsampling": 0})])
def test_png_jpeg_and_webp_are_read(tmp_path, name, options):
    quarters((32, 32)).save(tmp_path / name, **options)
    wanted = torch.tensor([[[1, -1], [-1, 1]], [[-1, 1], [-1, 1]], [[-1, -1], [1, 1]]]).float()
    found = read(tmp_path / name, (2, 2))
    assert found.dtype == torch.float32
    assert_close(found[0], wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1", "CMYK"])
def test_every_mode_becomes_the_channels_that_are_wanted(tmp_path, mode):
    name = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.new("L", (8, 8), 255).convert(mode).save(name)
    assert_close(read(name, (4, 4), 3, 0, 1), torch.ones(1, 3, 4, 4))
    assert_close(read(name, (4, 4), 1, 0, 1), torch.ones(1, 1, 4, 4))


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    picture = Image.new("I;16", (2, 1))
    picture.putpixel((0, 0), 65535)
    picture.putpixel((1, 0), 257 * 100)
    picture.save(tmp_path / "a.png")
    assert_close(read(tmp_path / "a.png", (1, 2), 1, 0, 255), torch.tensor([[[[255.0, 100.0]]]]))


def test_transparent_parts_are_white(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (0, 0, 0, 0))
    picture.save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", (1, 2), 1).flatten().tolist() == [-1, 1]


def test_a_photo_is_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    quarters((32, 32)).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    upright = fitted(quarters((32, 32)).rotate(-90), (2, 2))
    assert_close(read(tmp_path / "a.jpg", (2, 2), 3, 0, 1), upright, atol=0.01, rtol=0)


def test_a_pixel_is_the_mean_of_the_area_that_it_covers():
    picture = Image.new("L", (3, 3), 0)
    picture.putpixel((1, 1), 180)
    assert_close(fitted(picture, (1, 1), 1) * 255, torch.tensor([[[[20.0]]]]))
    assert_close(fitted(Image.linear_gradient("L"), (4, 4), 1)[0, 0, :, 0] * 255, torch.tensor([31.5, 95.5, 159.5, 223.5]), atol=0.5, rtol=0)


@pytest.mark.parametrize("size", [(300, 600), (600, 300)])
def test_the_centre_is_cut_out_and_nothing_is_stretched(size):
    picture = Image.new("RGB", size, "white")
    picture.paste("black", (size[0] // 2 - 150, size[1] // 2 - 150, size[0] // 2 + 150, size[1] // 2 + 150))
    assert not fitted(picture, (64, 64)).any()


@pytest.mark.parametrize("size", [(7, 7), (7, 13), (100, 33), (1, 1), (1, 50)])
@pytest.mark.parametrize("wanted", [(3, 3), (28, 28), (5, 3)])
def test_any_size_fits_any_size(size, wanted):
    assert_close(fitted(Image.new("L", size, 255), wanted, 1), torch.ones(1, 1, *wanted))


def test_a_box_is_a_mask_in_pixels_of_the_result():
    found = mask("1,2,4,3", (4, 6))
    assert found.shape == (1, 1, 4, 6) and found.sum() == 3
    assert found[0, 0, 2, 1:4].tolist() == [1, 1, 1]


@pytest.mark.parametrize("box", ["0,0,0,4", "3,0,2,4", "0,0,7,4", "-1,0,2,2", "0,0,4,5"])
def test_a_box_that_is_empty_or_leaves_the_image_is_refused(box):
    with pytest.raises(ValueError, match=f"the box {box} is not inside 6 x 4 pixels: give x0,y0,x1,y1 with"):
        mask(box, (4, 6))


def test_a_mask_is_white_where_to_repaint_and_follows_its_picture(tmp_path):
    quarters((60, 30)).save(tmp_path / "picture.png")
    drawn = Image.new("L", (60, 30), 0)
    drawn.paste(255, (30, 0, 60, 30))  # the right half
    drawn.save(tmp_path / "mask.png")
    found = mask(str(tmp_path / "mask.png"), (4, 4), of=tmp_path / "picture.png")
    assert found[0, 0].tolist() == [[0, 0, 1, 1]] * 4
    drawn.resize((4, 4)).save(tmp_path / "small.png")
    assert torch.equal(mask(str(tmp_path / "small.png"), (4, 4)), found)


def test_a_soft_mask_becomes_0_and_1(tmp_path):
    Image.linear_gradient("L").save(tmp_path / "mask.png")
    assert mask(str(tmp_path / "mask.png"), (256, 256))[0, 0, :, 0].tolist() == [0] * 128 + [1] * 128


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    quarters((60, 30)).save(tmp_path / "picture.png")
    quarters((61, 30)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="has 61 x 30 pixels: make it 4 x 4 or 60 x 30, as the picture is"):
        mask(str(tmp_path / "mask.png"), (4, 4), of=tmp_path / "picture.png")
    with pytest.raises(ValueError, match="has 61 x 30 pixels: make it 4 x 4, as the picture is"):
        mask(str(tmp_path / "mask.png"), (4, 4))


def png_header(width, height):
    """A PNG that promises width x height pixels in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"is empty \(0 bytes\): save"),
        (b"not a picture, but long enough to be one", "is no whole PNG, JPEG or WebP picture: save it again as PNG"),
        (png_header(8, 8), "is no whole PNG"),
        (png_header(30_000, 30_000), r"is too large .*900000000 pixels.*: scale it to at most"),
        (png_header(9_600, 9_600), r"is too large .*92160000 pixels.*: scale it to at most"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "is no whole PNG"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(tmp_path, content, message):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        read(tmp_path / "a.png", (4, 4))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name):
    Image.effect_noise((64, 64), 80).convert("RGB").save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is no whole PNG, JPEG or WebP picture"):
        read(tmp_path / name, (4, 4))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "nothing.png", tmp_path):
        with pytest.raises(ValueError, match="there is no picture .*: check the path"):
            read(path, (4, 4))


def test_every_shipped_picture_is_what_its_script_draws_and_has_a_source_and_a_licence():
    listed = (PICTURES / "README.md").read_text()
    made = runpy.run_path(str(PICTURES / "make.py"))
    for name, drawing in {"tower": "tower", "apple": "apple", "drawing-house": "house", "drawing-three": "three"}.items():
        drawn = made[drawing]()
        assert_close(read(PICTURES / f"{name}.png", (32, 32), 3, 0, 1), fitted(drawn, (32, 32)), atol=0.06, rtol=0)
    for path in PICTURES.glob("*.png"):
        assert f"| `{path.name}` |" in listed


def test_ink_has_a_bright_border_and_light_has_a_dark_one():
    x = torch.full((1, 1, 6, 6), -0.2)  # the border alone decides
    for inner in (-1, 1):
        x[..., 1:-1, 1:-1] = inner
        assert not inked(x)
        assert inked(-x)
        assert inked(x + 1, 0, 1)
