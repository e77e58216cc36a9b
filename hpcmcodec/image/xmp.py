"""XMP packets as bytes: what they say of turned or dropped parts is mended in place, everything else stays as it is.

A packet is RDF in XML (ISO 16684-1). A property is an attribute of rdf:Description, or an element. Patterns change
those alone which are named here: writing a packet anew from a parsed tree would rename its prefixes.
"""

from __future__ import annotations

import re
from xml.parsers import expat

# Properties about data that stand behind a JPEG's picture: gain maps and films of phones.
_APPENDED = (
    rb"(?:hdrgm|HDRGainMap|GainMap):\w+"
    rb"|GCamera:(?:MicroVideo|MotionPhoto)\w*"
    rb"|G?Container:Directory"
)
_APPENDED_ATTRIBUTE = re.compile(rb"\s(?:" + _APPENDED + rb""")\s*=\s*(?:"[^"]*"|'[^']*')""")
_APPENDED_ELEMENT = re.compile(rb"<(" + _APPENDED + rb")(?=[\s/>])")
_GPS_ATTRIBUTE = re.compile(rb"""\sexif:GPS\w+\s*=\s*(?:"[^"]*"|'[^']*')""")
_GPS_ELEMENT = re.compile(rb"<(exif:GPS\w+)(?=[\s/>])")
_THUMBNAILS = re.compile(rb"<(xmp:Thumbnails)(?=[\s/>])")
_ORIENTATION = re.compile(rb"""(tiff:Orientation(?:\s*=\s*["']|>)\s*)[2-8]""")
_SIDES = ((b"tiff:ImageWidth", b"tiff:ImageLength"), (b"exif:PixelXDimension", b"exif:PixelYDimension"))
_EXTENSION = re.compile(rb"""\sxmpNote:HasExtendedXMP\s*=\s*["']([0-9A-Fa-f]{32})["']""")
_EXTENSION_ELEMENT = re.compile(rb"<xmpNote:HasExtendedXMP>\s*([0-9A-Fa-f]{32})\s*</xmpNote:HasExtendedXMP>")
_NAMESPACE = re.compile(rb"""\sxmlns:[\w.-]+\s*=\s*(?:"[^"]*"|'[^']*')""")


def upright(packet: bytes, width: int, height: int) -> bytes:
    """A packet for pixels that have been turned: Orientation 1, sides of `width` and `height`, no thumbnails.

    A reader that prefers XMP to EXIF would turn the picture a second time.
    """
    packet = _without_elements(unturned(packet), _THUMBNAILS)
    for names in _SIDES:
        for name, side in zip(names, (width, height), strict=True):
            packet = re.sub(name + rb"""(\s*=\s*["']|>)\s*\d+""", name + rb"\g<1>" + str(side).encode(), packet)
    return packet


def unturned(packet: bytes) -> bytes:
    """A packet that asks nobody to turn the pixels."""
    return _ORIENTATION.sub(rb"\g<1>1", packet)


def without_appended(packet: bytes) -> bytes:
    """A packet that announces no gain map or film behind the picture."""
    return _without_elements(_APPENDED_ATTRIBUTE.sub(b"", packet), _APPENDED_ELEMENT)


def _without_elements(packet: bytes, opening: re.Pattern[bytes]) -> bytes:
    """A packet without the elements whose opening tags match; group 1 is their name. The time is linear."""
    kept, position = [], 0
    while found := opening.search(packet, position):
        end = packet.find(b">", found.end())
        if end >= 0 and packet[end - 1 : end] != b"/":
            end = packet.find(b">", packet.find(b"</" + found[1], end) + 1 or len(packet))
        if end < 0:
            break
        kept.append(packet[position : found.start()])
        position = end + 1
    return b"".join((*kept, packet[position:]))


def without_gps(packet: bytes) -> bytes:
    """A packet without the properties of EXIF that say where the picture was taken."""
    return _without_elements(_GPS_ATTRIBUTE.sub(b"", packet), _GPS_ELEMENT)


def announces_appended(packet: bytes) -> str:
    """What a packet says to stand behind the picture, in words; empty where nothing."""
    if re.search(rb"hdrgm:Version|HDRGainMap:|Semantic\s*=\s*[\"']GainMap", packet):
        return "gain map"
    if re.search(rb"GCamera:(?:MicroVideo|MotionPhoto)\s*(?:=\s*[\"']|>)\s*1|Semantic\s*=\s*[\"']MotionPhoto", packet):
        return "film"
    if re.search(rb"Container:Directory", packet):
        return "second picture"
    return ""


def extension_of(packet: bytes) -> bytes:
    """The digest by which a packet names its extension; empty where it has none."""
    found = _EXTENSION.search(packet) or _EXTENSION_ELEMENT.search(packet)
    return found[1] if found else b""


def without_extension(packet: bytes) -> bytes:
    """A packet that announces no extension."""
    return _EXTENSION_ELEMENT.sub(b"", _EXTENSION.sub(b"", packet))


def merged(packet: bytes, extension: bytes) -> bytes | None:
    """A packet with the properties of its extension; None where the two do not make one well-formed packet."""
    theirs, ours = _rdf_of(extension), _rdf_of(packet)
    if theirs is None or ours is None:
        return None
    # Prefixes that the extension declares outside of what is taken over are declared here as well.
    declared = set(_NAMESPACE.findall(packet[: ours.start]))
    outer = [n for n in _NAMESPACE.findall(extension[: theirs.start]) if n not in declared]
    head, rest = packet[: ours.start - 1], packet[ours.start - 1 : ours.stop]
    whole = head + b"".join(outer) + rest + extension[theirs.start : theirs.stop] + packet[ours.stop :]
    whole = without_extension(whole)
    return whole if well_formed(whole) else None


def _rdf_of(packet: bytes) -> slice | None:
    """The content of the element rdf:RDF; None where there is none."""
    opening = packet.find(b"<rdf:RDF")
    start = packet.find(b">", opening) + 1
    end = packet.rfind(b"</rdf:RDF")
    return slice(start, end) if 0 <= opening < start <= end else None


def well_formed(packet: bytes) -> bool:
    """Whether a packet is XML that a parser reads; one with a document type, which no packet needs, is not."""
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise expat.ExpatError("document type")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(packet.strip(b"\0 \r\n\t"), True)
    except (expat.ExpatError, ValueError):
        return False
    return True
