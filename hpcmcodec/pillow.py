"""A plugin for Pillow: after ``import hpcmcodec.pillow``, ``Image.open`` and ``Image.save`` know ``.hpcm`` files.

    import hpcmcodec.pillow
    from PIL import Image

    Image.open("photo.jpg").save("photo.hpcm", quality=60)
    with Image.open("photo.hpcm") as image:  # reads size, mode and metadata; nothing is decoded yet
        image.thumbnail((128, 128))  # decodes the file's own thumbnail where that is large enough

Images have 8 bits and the mode L, LA, RGB or RGBA. `info` gets what `image.to_image` puts there: "icc_profile", "exif",
"xmp", "iptc", "text" and "cicp". EXIF's Orientation has been applied.

Options of ``save``: `quality`, `effort`, `tile`, `verify` and `background` as for `hpcmcodec.encode`; `exif`,
`icc_profile` and `xmp` as bytes. Without the option they come from the image's `info`; None or b"" leaves them out.

Opening a file loads neither numpy nor onnxruntime: they are imported when pixels are needed.
"""

from __future__ import annotations

import io
import re
import warnings
from typing import IO, Any

from PIL import Image, ImageFile

from hpcmcodec import container
from hpcmcodec.container import LATENT
from hpcmcodec.errors import HpcmError

__all__ = ["HpcmImageFile", "register"]

_SHRINK = 8
# An entry of EXIF for Orientation that is not 1, in either byte order; perhaps other bytes that begin like one.
_TURNED = re.compile(rb"\x12\x01(?!\x03\0\x01\0\0\0\x01\0)|\x01\x12(?!\0\x03\0\0\0\x01\0\x01)")


class HpcmImageFile(ImageFile.ImageFile):
    """A ``.hpcm`` file as Pillow opens it; its pixels are decoded when they are asked for."""

    format = "HPCM"
    format_description = "hpcm image"

    def _open(self) -> None:
        try:
            self._data = container.read(self.fp, max_pixels=None, max_side=None)  # type: ignore[arg-type]
            reader = container.Reader(self._data, max_pixels=None, max_side=None)
            metadata = reader.metadata(partial=True)
        except HpcmError as error:
            raise SyntaxError(str(error)) from error  # Pillow's way to say that a file is of another format
        text = _texts_of(metadata.get("TEXT"))
        header = reader.header
        self._size = header.width, header.height
        # Pillow counts pixels as they are shown; what is decoded are whole squares of latents.
        Image._decompression_bomb_check((LATENT * header.latent_width, LATENT * header.latent_height))
        self._thumbnail = False
        self._mode = ("L" if header.grey else "RGB") + ("A" if header.alpha else "")
        self.tile = [self._whole()]
        self._take(metadata, header.cicp)
        if text is not None:
            self.info["text"] = text

    def _take(self, metadata: dict[str, bytes], cicp: tuple[int, int] | None) -> None:
        if "EXIF" in metadata:
            self.info["exif"] = b"Exif\0\0" + _upright(re.sub(rb"\A(?:Exif\0\0)+", b"", metadata["EXIF"]))
        for name, key in (("ICC", "icc_profile"), ("XMP", "xmp"), ("IPTC", "iptc")):
            if name in metadata:
                self.info[key] = _unturned(metadata[name]) if name == "XMP" else metadata[name]
        if cicp is not None:
            from hpcmcodec.image import colour

            space = colour.of_header(*cicp)
            self.info["cicp"] = tuple(space)
            if icc := colour.profile_of(space):
                self.info["icc_profile"] = icc

    def _whole(self) -> Any:
        return "raw", (0, 0, *self.size), 0, self.mode

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Has an eighth of the picture decoded, where that is at least as large as `size`; `mode` stays."""
        if not self.tile or self._thumbnail or size is None:
            return None
        width, height = self.size
        small = -(-width // _SHRINK), -(-height // _SHRINK)
        if small[0] < size[0] or small[1] < size[1]:
            return None
        self._thumbnail = True
        self._size = small
        self.tile = [self._whole()]
        return self.mode, (0, 0, width / _SHRINK, height / _SHRINK)

    def thumbnail(self, size: tuple[float, float], *args: Any, **kwargs: Any) -> None:
        """`Image.thumbnail`, from the file's own thumbnail where that is at least as large as the result."""
        self.draft(None, self._fitted(size))
        super().thumbnail(size, *args, **kwargs)

    def _fitted(self, size: tuple[float, float]) -> tuple[int, int]:
        """The sides of a thumbnail that fits into `size` in the picture's proportions, rounded up."""
        scale = min(1, size[0] / self.width, size[1] / self.height)
        return -int(-self.width * scale // 1), -int(-self.height * scale // 1)

    def load(self) -> Any:
        """Decodes the pixels. Raises OSError where the file is damaged or cannot be decoded here."""
        if self.tile:
            from hpcmcodec import codec

            try:
                decoded = codec.decode(self._data, thumbnail=self._thumbnail, max_pixels=None, max_side=None)
            except HpcmError as error:
                raise OSError(str(error)) from error
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self.fp = io.BytesIO(decoded.tobytes())
            self._data = b""
        return super().load()

    def load_seek(self, pos: int) -> None:
        """Nothing: pixels come from memory."""

    def tell(self) -> int:
        """0: a file has one picture."""
        return 0


def _texts_of(chunk: bytes | None) -> dict[str, str] | None:
    """The texts of a file, and a warning in place of those of another form than the format's."""
    try:
        return None if chunk is None else container.text_of(chunk)
    except HpcmError as error:
        warnings.warn(f"texts dropped: {error}", stacklevel=2)
        return None


def _unturned(packet: bytes) -> bytes:
    """XMP that asks nobody to turn the pixels."""
    if b"tiff:Orientation" not in packet:
        return packet
    from hpcmcodec.image import xmp

    return xmp.unturned(packet)


def _upright(block: bytes) -> bytes:
    """EXIF that asks nobody to turn the pixels, which are upright."""
    if not _TURNED.search(block):  # as in all files of this package's encoder: numpy need not be loaded
        return block
    from hpcmcodec.image import exif

    return exif.take_orientation(block)[1]


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(im: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    from dataclasses import replace

    from hpcmcodec import codec
    from hpcmcodec.image import editing, load

    options = im.encoderinfo
    known = ("quality", "effort", "tile", "verify", "background")
    try:
        picture = load(im, max_pixels=None)
        for key, name, change in (
            ("exif", "EXIF", editing.with_exif),
            ("icc_profile", "ICC", editing.with_icc),
            ("xmp", "XMP", editing.with_xmp),
        ):
            if key not in options:
                continue
            block = _bytes_of(options[key])
            if block and block == im.info.get(key):  # `load` has made of it what suits the picture
                continue
            metadata = {other: data for other, data in picture.metadata.items() if other != name}
            picture = replace(picture, metadata=metadata, cicp=None if key == "icc_profile" else picture.cicp)
            picture = change(picture, block) if block else picture
        arguments = {key: options[key] for key in known if key in options}
        data = codec.encode(picture, max_pixels=None, max_side=None, **arguments)
    except HpcmError as error:
        raise OSError(f"cannot write mode {im.mode} as HPCM: {error}") from error
    fp.write(data)


def _bytes_of(block: Any) -> Any:
    """A block of metadata as bytes; empty where it is EXIF without a tag, as `Image.getexif` gives it."""
    if isinstance(block, str):
        return block.encode()
    if isinstance(block, Image.Exif):
        return block.tobytes() if len(block) else b""
    return b"" if block == Image.Exif().tobytes() else block


def register() -> None:
    """Makes Pillow know ``.hpcm`` files. Importing this module does it; more calls change nothing."""
    Image.register_open(HpcmImageFile.format, HpcmImageFile, _accept)
    Image.register_save(HpcmImageFile.format, _save)
    Image.register_extension(HpcmImageFile.format, ".hpcm")
    Image.register_mime(HpcmImageFile.format, "image/x-hpcm")


register()
