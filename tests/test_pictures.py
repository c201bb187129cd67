"""Pictures and masks: every kind of file gives the pixels that a viewer shows, and what is no picture is refused in one
sentence.
"""

import io
import runpy
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageCms
from torch.testing import assert_close

from minidiff.files import save_arrays
from minidiff.pictures import _opened, fitted, inked, mask, of_arrays, read

PICTURES = Path(__file__).parent.parent / "data" / "pictures"


def quarters(size=(4, 4), mode="RGB"):
    """Red, green, blue, white quarters."""
    picture = Image.new("RGB", size, "white")
    w, h = size[0] // 2, size[1] // 2
    for i, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        picture.paste(colour, (i % 2 * w, i // 2 * h, i % 2 * w + w, i // 2 * h + h))
    return picture.convert(mode)


@pytest.mark.parametrize(
    "name, options", [("a.png", {}), ("a.webp", {"lossless": True}), ("a.jpg", {"quality": 100, "subsampling": 0})]
)
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
    assert_close(
        fitted(Image.linear_gradient("L"), (4, 4), 1)[0, 0, :, 0] * 255,
        torch.tensor([31.5, 95.5, 159.5, 223.5]),
        atol=0.5,
        rtol=0,
    )


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


PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, depth, colour, rows, *between, after=b"", head=b""):
    """A PNG by hand: its rows of packed pixels, and chunks before and after them."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return (
        PNG
        + header
        + head
        + b"".join(between)
        + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
        + after
        + chunk(b"IEND", b"")
    )


def png_header(width, height):
    """A PNG that promises width x height pixels in a few bytes."""
    return (
        PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def packed(values, depth):
    """Numbers of `depth` bits, the first in the highest bits."""
    bits = "".join(f"{value:0{depth}b}" for value in values)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def shown(path):
    """The pixels of a picture of one row, 0 ... 255."""
    width = struct.unpack_from(">I", path.read_bytes(), 16)[0]
    return read(path, (1, width), 3, 0, 255)[0, :, 0].T.round().int().tolist()


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("key", [None, "first", "last"])
def test_greys_of_every_depth_with_and_without_a_transparent_one(tmp_path, depth, key):
    top = 2**depth - 1
    values = sorted({0, 1, top // 2, top - 1, top})
    hidden = {None: [], "first": [values[0]], "last": [values[-1]]}[key]
    png = png_of(
        len(values),
        1,
        depth,
        0,
        [packed(values, depth)],
        *[chunk(b"tRNS", struct.pack(">H", value)) for value in hidden],
    )
    (tmp_path / "a.png").write_bytes(png)
    assert shown(tmp_path / "a.png") == [[255 if v in hidden else round(v * 255 / top)] * 3 for v in values]


@pytest.mark.parametrize("depth", [8, 16])
def test_the_transparent_colour_is_that_one_alone(tmp_path, depth):
    pixels = (
        [(1, 2, 3), (1, 2, 4), (60, 120, 180)]
        if depth == 8
        else [(257, 514, 771), (257, 514, 772), (15420, 30840, 46260)]
    )
    png = png_of(3, 1, depth, 2, [packed(sum(pixels, ()), depth)], chunk(b"tRNS", struct.pack(">HHH", *pixels[0])))
    (tmp_path / "a.png").write_bytes(png)
    assert shown(tmp_path / "a.png") == [[255, 255, 255], [1, 2, 4 if depth == 8 else 3], [60, 120, 180]]


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [4, 6])
def test_alpha_of_every_depth_mixes_with_white(tmp_path, depth, colour):
    by, channels = 257 if depth == 16 else 1, {4: 1, 6: 3}[colour]
    pixels = [value * by for alpha in (0, 51, 255) for value in (*[100] * channels, alpha)]
    (tmp_path / "a.png").write_bytes(png_of(3, 1, depth, colour, [packed(pixels, depth)]))
    assert shown(tmp_path / "a.png") == [[255] * 3, [224] * 3, [100] * 3]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_may_be_transparent_in_parts(tmp_path, depth):
    palette = chunk(b"PLTE", bytes([200, 100, 0, 0, 100, 200]))
    png = png_of(2, 1, depth, 3, [packed([0, 1], depth)], palette, chunk(b"tRNS", bytes([51])))
    (tmp_path / "a.png").write_bytes(png)
    assert shown(tmp_path / "a.png") == [[244, 224, 204], [0, 100, 200]]


LONG = b"x" * 3_000_000
AROUND = {
    "long text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(LONG)),
    "long plain text": chunk(b"tEXt", b"a\0" + LONG),
    "international text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "a profile that is none": chunk(b"iCCP", b"x\0\0" + zlib.compress(LONG)),
    "a profile that is broken": chunk(b"iCCP", b"x\0\0abc"),
    "no profile": chunk(b"iCCP", b""),
    "a bomb of a profile": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8))),
    "a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "unknown": chunk(b"abCd", LONG),
    "numbers": chunk(b"gAMA", b"")
    + chunk(b"cHRM", b"1")
    + chunk(b"pHYs", b"")
    + chunk(b"sRGB", b"")
    + chunk(b"tIME", b"1"),
    "an animation": chunk(b"acTL", struct.pack(">II", 2, 0))
    + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2, 1, 0, 0, 1, 1, 0, 0)),
    "an empty animation": chunk(b"acTL", b""),
    "EXIF that is none": chunk(b"eXIf", b"abc"),
    "empty EXIF": chunk(b"eXIf", b""),
}


@pytest.mark.parametrize("name", AROUND)
def test_what_surrounds_the_pixels_of_a_png_does_not_matter(tmp_path, name):
    (tmp_path / "a.png").write_bytes(png_of(2, 1, 8, 0, [bytes([0, 200])], AROUND[name]))
    assert shown(tmp_path / "a.png") == [[0] * 3, [200] * 3]
    (tmp_path / "a.png").write_bytes(png_of(2, 1, 8, 0, [bytes([0, 200])], after=AROUND[name])[:-12] + b"garbage")
    assert shown(tmp_path / "a.png") == [[0] * 3, [200] * 3]


def segment(number, data):
    return bytes([0xFF, number]) + struct.pack(">H", len(data) + 2) + data


@pytest.mark.parametrize(
    "data",
    [
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta"),
        segment(0xE1, b""),
        segment(0xE1, b"Exif\0\0"),
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        segment(0xE2, b"MPF\0"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\x04\0\x01\0\0\0\x02\0\0\0"),
        segment(0xE2, b"ICC_PROFILE\0\x02\x05abc"),
        segment(0xE2, b"ICC_PROFILE\0\x01\x01abc"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
        segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x01a"),
        segment(0xFE, b"\xff\0"),
        segment(0xE0, b"JFXX"),
        segment(0xEC, LONG[:60000]),
    ],
    ids=lambda data: repr(data[4:30]),
)
def test_what_surrounds_the_pixels_of_a_photo_does_not_matter(tmp_path, data):
    quarters((32, 32)).save(tmp_path / "a.jpg", quality=100, subsampling=0)
    plain, jpeg = read(tmp_path / "a.jpg", (4, 4)), (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + data + jpeg[2:])
    assert torch.equal(read(tmp_path / "a.jpg", (4, 4)), plain)


TURNED = {
    1: lambda x: x,
    2: lambda x: x.flip(-1),
    3: lambda x: x.flip(-1, -2),
    4: lambda x: x.flip(-2),
    5: lambda x: x.mT,
    6: lambda x: x.rot90(-1, (-2, -1)),
    7: lambda x: x.mT.flip(-1, -2),
    8: lambda x: x.rot90(1, (-2, -1)),
}
KINDS = {1: "B", 3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d"}
ODD = [
    (0x011A, 2, 3, b"72\0"),
    (0x0100, 2, 5, b"4000\0"),
    (0x0213, 5, 1, struct.pack("<II", 1, 0)),
    (0x010F, 99, 7, b"abc"),
    (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    (0x927C, 7, 4_000_000, b""),
]


def exif(order, *entries):
    """An EXIF block by hand: entries (tag, type, count, data)."""
    table, extra = b"", b""
    for tag, kind, count, data in sorted(entries):
        if len(data) > 4:
            extra, data = extra + data, struct.pack(f"{order}I", 14 + 12 * len(entries) + len(extra))
        table += struct.pack(f"{order}HHI", tag, kind, count) + data.ljust(4, b"\0")
    return {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries)) + table + bytes(4) + extra


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", "<>")
def test_every_orientation_of_every_type_is_turned_whatever_else_the_camera_says(tmp_path, kind, order):
    picture = quarters((16, 16))
    picture.save(tmp_path / "a.jpg", quality=100, subsampling=0)
    picture.save(tmp_path / "a.png")
    jpeg, png, upright = (tmp_path / "a.jpg").read_bytes(), (tmp_path / "a.png").read_bytes(), fitted(picture, (2, 2))
    for number, turned in TURNED.items() if kind == 3 else [(6, TURNED[6])]:
        block = exif(order, (0x0112, kind, 1, struct.pack(order + KINDS[kind], *[number, 1][: len(KINDS[kind])])), *ODD)
        (tmp_path / "b.jpg").write_bytes(jpeg[:2] + segment(0xE1, b"Exif\0\0" + block) + jpeg[2:])
        (tmp_path / "b.png").write_bytes(png[:33] + chunk(b"eXIf", block) + png[33:])
        picture.save(tmp_path / "b.webp", lossless=True, exif=block)
        for name in ("b.jpg", "b.png", "b.webp") if kind == 3 else ("b.jpg",):
            assert_close(read(tmp_path / name, (2, 2), 3, 0, 1), turned(upright), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "entry",
    [
        (0x0112, 3, 1, b"\0\0"),
        (0x0112, 3, 1, b"\x09\0"),
        (0x0112, 2, 2, b"6\0"),
        (0x0112, 3, 0, b""),
        (0x0112, 5, 1, struct.pack("<II", 6, 0)),
        (0x0112, 11, 1, struct.pack("<f", float("nan"))),
        (0x0112, 12, 1, struct.pack("<d", 1e300)),
    ],
    ids=repr,
)
def test_an_orientation_that_is_none_turns_nothing(tmp_path, entry):
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    png = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(png[:33] + chunk(b"eXIf", exif("<", entry)) + png[33:])
    assert _opened(tmp_path / "a.png").size == (8, 4)


def number(value):
    return struct.pack(">i", round(value * 65536))


def profile(space, *colours):
    """A colour profile of gamma 1.8 by hand: of RGB with three colours, or of greys."""

    def xyz(x, y, z):
        return b"XYZ " + bytes(4) + number(x) + number(y) + number(z)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(1.8 * 256)) + bytes(2)
    tags = [
        (b"desc", b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(80)),
        (b"cprt", b"text" + bytes(4) + b"CC0\0"),
        (b"wtpt", xyz(0.9642, 1, 0.8249)),
    ]
    tags += [(name, xyz(*colour)) for name, colour in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours)]
    tags += [(name, curve) for name in ((b"rTRC", b"gTRC", b"bTRC") if colours else (b"kTRC",))]
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, content in tags:
        table, data = (
            table + name + struct.pack(">II", offset + len(data), len(content)),
            data + content + bytes(-len(content) % 4),
        )
    head = struct.pack(
        ">I4sI4s4s4s6H", offset + len(data), b"lcms", 0x02400000, b"mntr", space, b"XYZ ", 2024, 1, 1, 0, 0, 0
    )
    return (
        (head + b"acspAPPL" + bytes(24) + number(0.9642) + number(1) + number(0.8249)).ljust(128, b"\0")
        + struct.pack(">I", len(tags))
        + table
        + data
    )


P3 = profile(b"RGB ", (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
GREY = profile(b"GRAY")


def on_screen(pixel, icc, mode):
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    return list(
        ImageCms.profileToProfile(
            Image.new(mode, (1, 1), pixel), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        ).getpixel((0, 0))
    )


@pytest.mark.parametrize(
    ("picture", "icc", "wanted"),
    [
        (Image.new("RGB", (2, 1), (200, 60, 60)), P3, on_screen((200, 60, 60), P3, "RGB")),
        (
            Image.new("RGB", (2, 1), (200, 60, 60)).convert("P", palette=Image.Palette.ADAPTIVE),
            P3,
            on_screen((200, 60, 60), P3, "RGB"),
        ),
        (Image.new("RGBA", (2, 1), (200, 60, 60, 255)), P3, on_screen((200, 60, 60), P3, "RGB")),
        (Image.new("RGBA", (2, 1), (200, 60, 60, 0)), P3, [255, 255, 255]),
        (Image.new("L", (2, 1), 100), GREY, on_screen(100, GREY, "L")),
        (Image.new("LA", (2, 1), (100, 255)), GREY, on_screen(100, GREY, "L")),
        (Image.new("I;16", (2, 1), 100 * 257), GREY, on_screen(100, GREY, "L")),
        (Image.new("L", (2, 1), 100), P3, on_screen((100, 100, 100), P3, "RGB")),
        (Image.new("RGB", (2, 1), (200, 60, 60)), GREY, [200, 60, 60]),
        (Image.new("RGB", (2, 1), (200, 60, 60)), P3[:200], [200, 60, 60]),
        (Image.new("RGB", (2, 1), (200, 60, 60)), b"no profile", [200, 60, 60]),
        (
            Image.new("RGB", (2, 1), (200, 60, 60)),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
            [200, 60, 60],
        ),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_colours_are_those_of_a_screen_whatever_the_profile(tmp_path, picture, icc, wanted):
    picture.save(tmp_path / "a.png", icc_profile=icc)
    assert shown(tmp_path / "a.png") == [pytest.approx(wanted, abs=2)] * 2


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_profiles_of_photos_count_too(tmp_path, name):
    Image.new("RGB", (16, 16), (200, 60, 60)).save(
        tmp_path / name, icc_profile=P3, quality=100, **({"lossless": True} if name == "a.webp" else {"subsampling": 0})
    )
    assert read(tmp_path / name, (1, 1), 3, 0, 255).flatten().tolist() == pytest.approx(
        on_screen((200, 60, 60), P3, "RGB"), abs=3
    )


def test_inks_without_a_profile_and_with_one_of_another_kind_are_colours(tmp_path):
    for more in ({}, {"icc_profile": P3}):
        Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100, **more)
        assert read(tmp_path / "a.jpg", (1, 1), 3, 0, 255).flatten().tolist() == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, name):
    frames = [Image.new("RGBA", (8, 8), colour) for colour in ((255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 0))]
    frames[0].save(
        tmp_path / name,
        save_all=True,
        append_images=frames[1:],
        duration=100,
        **({"lossless": True} if name == "a.webp" else {}),
    )
    assert read(tmp_path / name, (1, 1), 3, 0, 1).flatten().tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        (
            {"images": torch.zeros(2, 3, 8, 6)},
            r"has images \(2, 3, 8, 6\), the model takes images \(N, 3, 8, 8\) in \[0, 1\]: give a picture",
        ),
        ({"images": torch.zeros(2, 1, 8, 8)}, r"has images \(2, 1, 8, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 8)}, r"has images \(0, 3, 8, 8\)"),
        ({"images": torch.zeros(3, 8, 8)}, r"has images \(3, 8, 8\)"),
        ({"labels": torch.zeros(3)}, "has no images, the model takes"),
        ({"images": torch.full((1, 3, 8, 8), 1.5)}, r"has images in \[1.5, 1.5\], expected"),
        ({"images": torch.full((1, 3, 8, 8), torch.nan)}, r"has images in \[nan, nan\], expected"),
    ],
)
def test_arrays_of_another_shape_are_refused_with_it(tmp_path, arrays, says):
    save_arrays(arrays, tmp_path / "a.npz", {})
    with pytest.raises(ValueError, match=says):
        of_arrays(tmp_path / "a.npz", (8, 8))
    save_arrays({"images": torch.ones(2, 3, 8, 8, dtype=torch.float64)}, tmp_path / "b.npz", {})
    assert torch.equal(of_arrays(tmp_path / "b.npz", (8, 8)), torch.ones(2, 3, 8, 8))


def test_a_path_that_is_none_and_a_picture_that_may_not_be_read_are_refused(tmp_path, monkeypatch):
    for path in ("x" * 300, "a\0b", tmp_path / "a.png" / "b.png", "/dev/zero"):
        with pytest.raises(ValueError, match="there is no picture"):
            read(path, (4, 4))
    (tmp_path / "a.png").touch()

    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(ValueError, match=r"a.png cannot be read \(Permission denied\): check its rights"):
        read(tmp_path / "a.png", (4, 4))


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
    for name, drawing in {
        "tower": "tower",
        "apple": "apple",
        "drawing-house": "house",
        "drawing-three": "three",
    }.items():
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
