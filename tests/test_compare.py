"""`hpcm compare` and `hpcm info --bits-map`: maps that add up; a page that works alone, by keyboard and by touch."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import hpcmcodec
from hpcmcodec import codec, container
from hpcmcodec.cli import cli
from hpcmcodec.errors import UnsupportedError
from hpcmcodec.evaluation import blind, heat, report
from hpcmcodec.evaluation.metrics import psnr_db
from tests import tiny


def hpcm(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(photos: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A piece of a photograph, 208x176, two .hpcm files of it, one of another size, and a page about them."""
    made = tmp_path_factory.mktemp("compare")
    with Image.open(photos["coffee"]) as image:
        piece = image.convert("RGB").crop((100, 60, 308, 236))
    piece.save(made / "photo.png")
    for name, quality in (("low", 15), ("high", 80)):
        (made / f"{name}.hpcm").write_bytes(hpcmcodec.encode(piece, quality))
    (made / "small.hpcm").write_bytes(hpcmcodec.encode(piece.crop((0, 0, 64, 64)), 50))
    done = hpcm("compare", made / "photo.png", made / "low.hpcm", made / "high.hpcm", "--against", "webp", "--quiet")
    assert done.exit_code == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "photo.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """All start tags of a page, and the text of its table cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.cells: list[str] = []
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._in_cell = tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells.append(data)


def pixels_of(source: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) as image:
        return np.asarray(image.convert("RGB"))


# ----------------------------------------------------------------------------------------------------- where bits went


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (131, 77), (17, 250)])
def test_a_bits_map_adds_up_to_the_streams(size: tuple[int, int]) -> None:
    with tiny.installed():
        data = tiny.encode(*size, 70)
        spent = codec.bits_map(data)
    header = container.parse_header(data)
    assert list(spent) == list(container.STREAM_ORDER)
    for scale, bits in spent.items():
        assert bits.shape == (header.latent_height, header.latent_width)
        assert (bits >= 0).all()
        # A stream has up to 8 bytes of state and is filled up to 4 symbols; coding rounds a little.
        assert 0 <= header.bytes_of(scale) - bits.sum() / 8 < 16


def test_a_bits_map_covers_every_tile() -> None:
    with tiny.installed():
        data = tiny.encode(4096 + 40, 24)
        spent = codec.bits_map(data)
    header = container.parse_header(data)
    assert header.n_tiles == 2
    for scale, bits in spent.items():
        for i, (row, column, rows, columns) in enumerate(header.tiles):
            length = header.stream_info(scale, i).length
            tile = bits[row : row + rows, column : column + columns]
            assert 0 <= length - tile.sum() / 8 < 16


def test_bits_are_charged_where_the_picture_is_hard(photos: dict[str, Path]) -> None:
    with Image.open(photos["coffee"]) as image:
        pixels = np.full((128, 256, 3), 128, np.uint8)
        pixels[:, 128:] = np.asarray(image.convert("RGB"))[150:278, 230:358]
    bits = heat.bits_per_pixel(codec.bits_map(hpcmcodec.encode(pixels, 60)))
    assert bits[:, 10:].mean() > 5 * bits[:, :6].mean()


def test_looking_at_bits_changes_nothing() -> None:
    with tiny.installed():
        data = tiny.encode(131, 77)
        before = codec.decode_latents(data)
        codec.bits_map(data)
        assert (codec.decode_latents(data) == before).all()


def test_info_draws_the_map_beside_what_it_prints(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.png"
    plain = hpcm("info", folder / "high.hpcm", "--json")
    done = hpcm("info", folder / "high.hpcm", "--json", "--bits-map", target)
    assert (done.exit_code, done.stdout) == (0, plain.stdout)
    with Image.open(target) as image:
        drawn = np.asarray(image.convert("RGB"))
    bits = heat.bits_per_pixel(codec.bits_map((folder / "high.hpcm").read_bytes()))
    colours = np.asarray(heat.heat_image(bits, heat.legend_range(bits)).convert("RGB"))
    top, left = next(
        (y, x)
        for y in range(10, 60)
        for x in range(40)
        if (drawn[y : y + 176 : 16, x : x + 208 : 16] == colours).all()
        and (drawn[y + 15 : y + 176 : 16, x + 15 : x + 208 : 16] == colours).all()
    )
    assert drawn.shape[0] > top + 176
    assert (drawn[:top, :left] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["{folder}/high.hpcm", "--bits-map", "{folder}/map.jpg"], 2, ".png"),
        (["{folder}/high.hpcm", "--bits-map", "{folder}/photo.png"], 6, "exists already; -f overwrites it"),
        (["{folder}/photo.png", "--bits-map", "{folder}/map.png"], 3, "photo.png"),
    ],
)
def test_a_map_that_cannot_be_made_is_refused_in_one_line(
    arguments: list[str], code: int, words: str, folder: Path
) -> None:
    done = hpcm("info", *(argument.format(folder=folder) for argument in arguments))
    assert (done.exit_code, done.stdout) == (code, "")
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ----------------------------------------------------------------------------------------------------- maps and places


def test_the_error_map_is_the_root_mean_square_of_each_block() -> None:
    a = np.zeros((6, 9, 3), np.uint8)
    b = a.copy()
    b[1, 2] = 12  # 16 pixels in this block
    b[5, 8] = (3, 0, 0)  # 2 pixels in this one, at the corner
    expected = np.zeros((2, 3))
    expected[0, 0], expected[1, 2] = 12 / 4, (9 / 3 / 2) ** 0.5
    assert heat.error_map(a, b) == pytest.approx(expected)


def test_the_colour_scale_grows_lighter_throughout() -> None:
    scale = np.asarray(heat.heat_image(np.linspace(0, 1, 256)[None], 1.0).convert("RGB"))[0].astype(float)
    luma = scale @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luma) > -0.8).all()  # rounding to 8 bits
    assert luma[-1] - luma[0] > 150
    above = heat.heat_image(np.array([[1.0, 7.0]]), 1.0)
    assert above.getpixel((0, 0)) == above.getpixel((1, 0)) == 255
    assert heat.heat_image(np.zeros((1, 1)), 0.0).getpixel((0, 0)) == 0


def test_crops_are_taken_where_pictures_differ_most() -> None:
    original = np.zeros((1000, 1200, 3), np.uint8)
    decoded = original.copy()
    decoded[700:760, 40:100] = 90
    decoded[100:160, 900:960] = 60
    found = report.places(original, [decoded])
    assert len(found) == report.N_CROPS
    inside = [[left <= x and top <= y and right >= x + 60 and bottom >= y + 60 for left, top, right, bottom in found]
              for x, y in ((40, 700), (900, 100))]  # fmt: skip
    assert [where.index(True) for where in inside] == [0, 1]
    for i, (left, top, right, bottom) in enumerate(found):
        assert (right - left, bottom - top) == (report.CROP, report.CROP)
        assert 0 <= left < right <= 1200
        assert 0 <= top < bottom <= 1000
        for other in found[:i]:
            assert right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3]


@pytest.mark.parametrize("size", [(1, 1), (100, 50), (192, 192)])
def test_an_image_smaller_than_a_crop_is_taken_whole(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    assert report.places(pixels, [pixels]) == [(0, 0, width, height)]


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_page_holds_every_picture_exactly(page: str, folder: Path) -> None:
    pictures = {tag["alt"]: tag["src"] for name, tag in Elements(page).tags if name == "img" and "data-width" in tag}
    assert list(pictures)[:2] == ["original", "low.hpcm (q 15)"]
    assert len(pictures) == 5  # with a WebP for each file
    with Image.open(folder / "photo.png") as image:
        assert (pixels_of(pictures["original"]) == np.asarray(image)).all()
    decoded = np.asarray(hpcmcodec.decode(folder / "low.hpcm"))
    assert (pixels_of(pictures["low.hpcm (q 15)"]) == decoded).all()


def test_the_page_states_the_numbers(page: str, folder: Path) -> None:
    cells = Elements(page).cells
    with Image.open(folder / "photo.png") as image:
        original = np.asarray(image)
    for name in ("low.hpcm", "high.hpcm"):
        n_bytes = (folder / name).stat().st_size
        row = cells[next(i for i, cell in enumerate(cells) if cell.startswith(name)) :]
        psnr = psnr_db(original, np.asarray(hpcmcodec.decode(folder / name)))
        assert row[1:4] == [f"{n_bytes:,}", f"{8 * n_bytes / (208 * 176):.3f}", f"{psnr:.2f}"]
    sizes = [int(cells[i + 1].replace(",", "")) for i, cell in enumerate(cells) if "as large as" in cell]
    own = [(folder / name).stat().st_size for name in ("low.hpcm", "high.hpcm")]
    assert sizes == [pytest.approx(size, rel=0.2) for size in own]


def test_the_page_loads_nothing(page: str) -> None:
    tags = Elements(page).tags
    for tag, attributes in tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|WebSocket|https?:", re.sub(r"data:[^\"]*", "", page))
    (policy,) = (attributes["content"] for tag, attributes in tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "{{" not in page


def test_names_cannot_change_the_page() -> None:
    pixels = tiny.picture(40, 30)
    name = "<script>alert(1)</script>\"'.hpcm"
    text = report.page(name, pixels, [report.Candidate(name, 10, pixels, np.ones((2, 3)))], None, lambda line: None)
    assert text.count("<script>") == 1
    assert all('"' not in tag.get("alt", "") or tag["alt"].startswith(("<script>", "error of", "bits of"))
               for _, tag in Elements(text).tags)  # fmt: skip


def test_pictures_carry_the_photographs_profile(folder: Path) -> None:
    pixels = tiny.picture(40, 30)
    text = report.page(
        "x", pixels, [report.Candidate("y", 10, pixels, np.ones((2, 3)))], b"a profile", lambda line: None
    )
    sources = [tag["src"] for name, tag in Elements(text).tags if name == "img" and "data-width" in tag]
    for source in sources:
        with Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))) as image:
            assert image.info["icc_profile"] == b"a profile"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["photo.png", "small.hpcm"], 3, "64x64 pixels, but the photograph has 208x176"),
        (["photo.png", "photo.png"], 3, "photo.png"),
        (["low.hpcm", "low.hpcm"], 4, "low.hpcm: this is an .hpcm file already"),
        (["missing.png", "low.hpcm"], 3, "No such file"),
        (["photo.png", "low.hpcm", "--against", "gif"], 2, "'gif' is not one of"),
        (["photo.png", "low.hpcm", "-o", "photo.html"], 6, "exists already"),
        (["photo.png"], 2, "a photograph is compared with .hpcm files"),
        ([".", "low.hpcm"], 2, "a folder of photographs without"),
        (["empty"], 3, "no images"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    arguments: list[str], code: int, words: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("empty").mkdir(exist_ok=True)
    done = hpcm("compare", *arguments, *([] if "-o" in arguments else ["-o", "other.html"]))
    assert done.exit_code == code
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not Path("other.html").exists()


# ----------------------------------------------------------------------------------------------- a folder, names hidden


@pytest.fixture(scope="module")
def blind_page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs by JPEG and WebP at 1 bit per pixel, and hpcm where --against does not matter."""
    made = tmp_path_factory.mktemp("photos")
    with Image.open(folder / "photo.png") as image:
        image.save(made / "one.png")
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(made / "two.png")
    done = hpcm("compare", made, "--against", "jpeg,webp", "--bpp", 1, "-o", made / "blind.html", "--quiet")
    assert done.exit_code == 0, done.stderr
    return made / "blind.html"


def test_a_folder_becomes_crops_of_equal_size_files_in_an_order_that_does_not_tell(
    blind_page: Path, folder: Path
) -> None:
    text = blind_page.read_text(encoding="utf-8")
    tags = Elements(text).tags
    buttons = [attributes["data-codec"] for tag, attributes in tags if tag == "button" and "data-codec" in attributes]
    rows = [tuple(buttons[i : i + 3]) for i in range(0, len(buttons), 3)]
    assert len(rows) == 2  # each photograph is smaller than two crops
    assert all(sorted(row) == ["JPEG", "WebP", "hpcm"] for row in rows)
    shown = [float(v) for v in re.findall(r", (\d\.\d+) bpp</span>", text)]
    assert shown == [pytest.approx(1, rel=0.1)] * 6
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert [image["alt"] for image in images] == ["original", "A", "B", "C"] * 2
    with Image.open(folder / "photo.png") as image:
        original = np.asarray(image)
    crop = pixels_of(images[0]["src"])
    assert any(
        (original[top : top + crop.shape[0], left : left + crop.shape[1]] == crop).all()
        for top in range(original.shape[0] - crop.shape[0] + 1)
        for left in range(original.shape[1] - crop.shape[1] + 1)
    )


def test_orders_differ_from_crop_to_crop_and_are_the_same_in_every_run() -> None:
    pixels = tiny.picture(16, 16)
    decoded = dict.fromkeys(("hpcm", "jpeg", "webp"), pixels)
    crops = [blind.Crop(f"{i}.png", pixels, decoded, dict.fromkeys(decoded, 0.2), None) for i in range(60)]
    text = blind.page("x", crops)
    assert text == blind.page("x", crops)
    found = re.findall(r'data-codec="([^"]+)"', text)
    assert len({tuple(found[i : i + 3]) for i in range(0, len(found), 3)}) == 6


def test_the_page_of_a_folder_loads_nothing_and_names_cannot_change_it() -> None:
    pixels = tiny.picture(16, 16)
    text = blind.page("<script>", [blind.Crop("<script>\"'", pixels, {"hpcm": pixels}, {"hpcm": 1.0}, None)])
    assert text.count("<script>") == 1
    test_the_page_loads_nothing(text)


def test_fewer_than_two_codecs_cannot_be_compared(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="fewer than two"):
        blind.blind(folder, ["hpcm"], 0.2)


# -------------------------------------------------------------------------------------------------------- in a browser


class Browser:
    """Headless Chromium over the WebDriver protocol (W3C, 2018), as far as these tests need it."""

    def __init__(self, driver: str, chromium: str, profile: Path, *, dark: bool) -> None:
        self._process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._session = ""
        try:
            if self._process.stdout is None:
                raise RuntimeError("chromedriver has no output")
            found = next(
                filter(None, (re.search(r"successfully on port (\d+)", line) for line in self._process.stdout))
            )
            self._base = f"http://127.0.0.1:{found[1]}/session"
            flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
            flags += " disable-component-update disable-sync hide-scrollbars window-size=1200,1400"
            arguments = [f"--{flag}" for flag in flags.split()] + [f"--user-data-dir={profile}"]
            if dark:
                arguments.append("--blink-settings=preferredColorScheme=0")
            options = {"goog:chromeOptions": {"binary": chromium, "args": arguments}}
            self._session = "/" + self.call("POST", "", capabilities={"alwaysMatch": options})["sessionId"]
        except BaseException:
            self.close()
            raise

    def call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + self._session + path, data, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", script=f"return {script}", args=[])

    def keys(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def drag(self, kind: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        move = {"type": "pointerMove", "duration": 0}
        actions = [
            {**move, "x": round(start[0]), "y": round(start[1])},
            {"type": "pointerDown", "button": 0},
            {**move, "x": round(end[0]), "y": round(end[1])},
            {"type": "pointerUp", "button": 0},
        ]
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": actions}
        self.call("POST", "/actions", actions=[pointer])

    def screenshot(self) -> np.ndarray:
        with Image.open(io.BytesIO(base64.b64decode(self.call("GET", "/screenshot")))) as image:
            return np.asarray(image.convert("RGB"))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._session:
                self.call("DELETE", "")
        self._process.terminate()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()


@pytest.fixture(scope="module", params=["light", "dark"])
def browser(
    request: pytest.FixtureRequest, folder: Path, page: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    """Chromium with the page loaded."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("Chromium is not installed: Debian's packages chromium and chromium-driver")
    found = Browser(driver, chromium, tmp_path_factory.mktemp("chromium"), dark=request.param == "dark")
    found.theme = request.param
    try:
        found.call("POST", "/url", url=(folder / "photo.html").as_uri())
        yield found
    finally:
        found.close()


def split(browser: Browser) -> float:
    """Where the divider is, in percent, as it is drawn."""
    return float(
        browser.run("parseFloat(getComputedStyle(document.getElementById('over')).clipPath.split(' ').at(-1))")
    )


def test_the_page_is_drawn_in_the_colours_of_the_system(browser: Browser) -> None:
    drawn = browser.screenshot()
    assert (drawn[2, 2] == ([22, 24, 28] if browser.theme == "dark" else [255, 255, 255])).all()
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1000  # the photograph is there


def test_nothing_is_wider_than_the_page(browser: Browser) -> None:
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_the_arrow_keys_move_the_divider(browser: Browser) -> None:
    browser.run("divide(50)")
    browser.keys("\ue014", "\ue014", "\ue014")
    assert split(browser) == 53
    browser.keys("\ue012")
    assert split(browser) == 52


@pytest.mark.parametrize("kind", ["mouse", "touch"])
def test_the_divider_follows_a_pointer(browser: Browser, kind: str) -> None:
    left, top, width, height = browser.run(
        "(document.querySelector('.stage').scrollIntoView(), b => [b.left, b.top, b.width, b.height])"
        "(layers.getBoundingClientRect())"
    )
    y = top + min(height, 300) / 2
    browser.drag(kind, (left + 0.3 * width, y), (left + 0.8 * width, y))
    assert split(browser) == pytest.approx(80, abs=0.6)


def test_digits_and_x_choose_the_pictures(browser: Browser) -> None:
    names = browser.run("pictures.map(picture => picture.alt)")
    browser.run("(left.selectedIndex = 0, show())")
    browser.keys("4")
    assert browser.run("document.getElementById('over').alt") == names[3]
    browser.keys("x")
    assert browser.run("[left, right].map(select => select.selectedIndex)") == [3, 0]
    assert browser.run("['under', 'over'].map(id => document.getElementById(id).alt)") == [names[3], names[0]]


def test_marks_are_counted_by_codec_once_names_are_asked_for(browser: Browser, blind_page: Path, folder: Path) -> None:
    browser.call("POST", "/url", url=blind_page.as_uri())
    try:
        hidden = "[...document.querySelectorAll('.name')].every(e => getComputedStyle(e).display === 'none')"
        assert browser.run(hidden)
        chosen = browser.run("document.querySelectorAll('section button')[1].dataset.codec")
        browser.run("[...document.querySelectorAll('section button')].slice(0, 2).forEach(b => b.click())")
        browser.run("document.getElementById('reveal').click()")
        assert not browser.run(hidden)
        rows = browser.run("[...document.querySelectorAll('tr')].map(r => r.innerText.trim().split(/\\s*\\t\\s*/))")
        assert rows[:2] == [["codec", "marked"], [chosen, "1"]]
        assert [row[1] for row in rows[2:]] == ["0", "0"]
    finally:
        browser.call("POST", "/url", url=(folder / "photo.html").as_uri())


def test_z_shows_one_pixel_as_one_pixel(browser: Browser) -> None:
    width = "layers.getBoundingClientRect().width * devicePixelRatio"
    before = browser.run(width)
    browser.keys("z")
    assert browser.run(width) == pytest.approx(208, abs=0.5)
    assert browser.run("zoom.getAttribute('aria-pressed')") == "true"
    browser.keys("z")
    assert browser.run(width) == before
