r"""Reads and writes image files: RGB of 8 to 16 bits, alpha, colour space, metadata, and a note for each conversion.

What `load` makes of each kind of picture:

    ============================  ===================================================================================
    input                         treatment
    ============================  ===================================================================================
    RGB                           taken as it is, with its ICC profile or code points (CICP)
    greyscale, bilevel            kept as grey; a profile of greys is applied, which gives sRGB's greys
    palette, YCbCr                converted
    9 to 16 bits per sample       kept, where the reader of the format gives them; else reduced, with a note
    CMYK                          converted to sRGB through its profile; without one by the plain formula
    alpha                         kept, not premultiplied; dropped where it is opaque everywhere
    animation, several pages,     refused (`UnsupportedError`)
    Lab, 32 bits, floating point
    ============================  ===================================================================================

Whatever is converted or dropped leaves a line in `Picture.notes`: nothing of the input is changed in silence. EXIF's
Orientation is applied to the pixels and set to 1 in the EXIF that is kept, so that nobody applies it again. What else
EXIF and XMP say of the turned picture is mended in place, so that maker notes, whose offsets count from the block's
start, stay valid.

Metadata are bytes by name: "ICC" is a profile of the RGB pixels (without one, and without code points, they are sRGB);
"EXIF" is a TIFF structure *without* the prefix ``Exif\0\0``, as PNG, WebP and AVIF hold it; "XMP" is an XMP packet;
"IPTC" is a block of IIM records; "TEXT" holds keywords and texts, as `container.text_of` reads them.

    load.py     which reader takes a file, sizes and errors; Pillow's images and arrays
    png.py, jpeg.py, tiff.py, heif.py and isobmff.py, bmp.py, netpbm.py    what Pillow does not read of each format
    deep.py     16 bits of colour through Pillow
    samples.py  levels, alpha, conversions
    colour.py   code points and profiles
    carried.py, exif.py, xmp.py    metadata
    kind.py     is it a photograph?
    scale.py    smaller sizes
    save.py     the way back: Pillow's images, and files
"""

from hpcmcodec.image.kind import not_a_photograph
from hpcmcodec.image.load import load
from hpcmcodec.image.picture import Picture, flattened, plain
from hpcmcodec.image.save import (
    DecodedImage,
    alpha_png,
    read_alpha,
    thumbnail_of_alpha,
    to_image,
    with_alpha_chunk,
    write,
    write_png,
)
from hpcmcodec.image.scale import scaled_to, sides_within

__all__ = [
    "DecodedImage",
    "Picture",
    "alpha_png",
    "flattened",
    "load",
    "not_a_photograph",
    "plain",
    "read_alpha",
    "scaled_to",
    "sides_within",
    "thumbnail_of_alpha",
    "to_image",
    "with_alpha_chunk",
    "write",
    "write_png",
]
