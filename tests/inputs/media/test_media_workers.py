"""Media opened and cut by processes of their own: the same tiles as here, whatever happens to the processes."""

from __future__ import annotations

import base64
import io
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.inputs.media.test_video import film
from tests.served import until
from tilewise.errors import Cancelled, InvalidMedia, InvalidRequest, Overloaded, TilewiseError
from tilewise.inputs.media.cache import CutPicture
from tilewise.inputs.media.cut_worker import CutPictureJob
from tilewise.inputs.media.images import Opening, UnopenedFile
from tilewise.inputs.media.limits import MediaBudget, MediaLimits
from tilewise.inputs.media.opener import MediaOpener, MediaWorkers
from tilewise.inputs.media.reader import MediaOptions, MediaPart, MediaReader
from tilewise.inputs.media.tile_memory import TileFile, TileForm, TileStore
from tilewise.inputs.media.tiling import LimitedPicture, Tiling

TILING = Tiling(tile_size=28, max_tiles=6)
CELLS = 64


def noise(mode: str = "RGB", size: tuple[int, int] = (90, 61), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def sideways() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(noise(), "JPEG", exif=exif)


FILES = {
    "png": saved(noise(), "PNG"),
    "grey": saved(noise("L"), "PNG"),
    "palette": saved(noise("P"), "PNG"),
    "16 bits": saved(noise("I;16"), "PNG"),
    "transparent": saved(noise("RGBA"), "PNG"),
    "jpeg": saved(noise(), "JPEG"),
    "cmyk": saved(noise("CMYK"), "JPEG"),
    "sideways": sideways(),
    "webp": saved(noise(), "WEBP"),
    "gif": saved(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]),
    "tiff": saved(noise(), "TIFF", compression="tiff_lzw"),
    "lab": saved(noise("LAB"), "TIFF"),
    "bmp": saved(noise(), "BMP"),
    "avif": saved(noise(), "AVIF"),
    "jpeg 2000": saved(noise(), "JPEG2000"),
    "ppm": saved(noise(), "PPM"),
    "ico": saved(noise(), "ICO", sizes=[(48, 48)]),
    "tga": saved(noise(), "TGA"),
}
BROKEN = {
    "cut short": FILES["png"][:300],
    "no picture": b"What is this?",
    "a video": b"\0\0\0\x18ftypmp42" + bytes(64),
    "empty": b"",
}


def part(content: bytes, kind: str = "image", uuid: str | None = None) -> MediaPart:
    url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
    return MediaPart(url, kind, uuid, where="messages[0].content[0]")


@pytest.fixture(scope="module")
def opener() -> Iterator[MediaOpener]:
    made = MediaOpener(1, TileStore(TileFile(), TileForm(CELLS, TILING.tile_size)), 2**20, None)
    yield made
    made.close()


@pytest.fixture
def preparer(make_preparer, opener):
    """One that cuts here, and one that has pictures cut."""
    here = make_preparer()
    here = replace(here, spec=replace(here.spec, tiling=TILING))
    return here, replace(here, opener=opener)


@pytest.fixture
def reader(opener) -> tuple[MediaReader, MediaReader]:
    here = MediaReader()
    return here, replace(here, opener=opener)


def worker_of(workers: MediaWorkers) -> int:
    """The process id of the only worker, once it is idle."""
    until(lambda: bool(workers._idle))
    return workers._idle[0].process


def digests(picture: CutPicture) -> list[bytes]:
    return [tile.digest for tile in picture.tiles]


def cut(preparer, reader: MediaReader, *contents: bytes):
    mine = reader.timed()
    return preparer._tile_all([mine.picture(part(content)) for content in contents], None), mine


@pytest.mark.parametrize("name", FILES)
def test_tiles_are_those_of_a_picture_that_is_opened_here(preparer, reader, name):
    ((here,), one), ((there,), other) = (
        cut(its, reads, FILES[name]) for its, reads in zip(preparer, reader, strict=True)
    )
    assert (there.grid, there.size, digests(there)) == (here.grid, here.size, digests(here))
    assert all((a.pixels == b.pixels).all() for a, b in zip(here.tiles, there.tiles, strict=True))
    assert other.ignored == one.ignored
    assert other.watch.counts == one.watch.counts
    assert (other.budget.bytes_taken, other.budget.decoded_taken) == (
        one.budget.bytes_taken,
        one.budget.decoded_taken,
    )


@pytest.mark.parametrize("name", BROKEN)
def test_errors_are_those_of_a_file_that_is_opened_here(preparer, reader, name):
    with pytest.raises(InvalidMedia) as here:
        reader[0].timed().picture(part(BROKEN[name]))
    with pytest.raises(InvalidMedia) as there:
        cut(preparer[1], reader[1], BROKEN[name])
    assert str(there.value) == f"messages[0].content[0]: {here.value}"
    assert there.value.param == "messages[0].content[0]"


def test_options_of_a_request_and_of_a_part_reach_the_worker(preparer, reader):
    options = MediaOptions(background=(255, 0, 0))
    found = []
    for its, reads in zip(preparer, reader, strict=True):
        mine = replace(reads.timed(options), detail_tiles={"low": 1})
        low = mine.picture(replace(part(FILES["transparent"]), detail="low"))
        assert isinstance(low, LimitedPicture)
        found.append(its._tile_all([low, mine.picture(part(FILES["transparent"]))], None))
    assert [digests(one) for one in found[0]] == [digests(one) for one in found[1]]
    assert len(found[1][0].tiles) == 1 < len(found[1][1].tiles)


def test_limits_of_a_request_hold_over_all_its_pictures(preparer, reader):
    size = 4 * 90 * 61
    limits = MediaLimits(request_decoded_bytes=2 * size)
    mine = replace(reader[1], access=replace(reader[1].access, limits=limits)).timed()
    pictures = [mine.picture(part(saved(noise(seed=20 + seed), "PNG"))) for seed in range(3)]
    with pytest.raises(InvalidMedia, match=f"have {3 * size} bytes of pixels or more, the limit is {2 * size}"):
        preparer[1]._tile_all(pictures, None)


def test_a_known_file_is_not_opened_again_and_shares_its_cells(preparer, reader, opener):
    opener.forget()
    counts = opener.counts
    (first,), _ = cut(preparer[1], reader[1], FILES["webp"])
    os.kill(pid := worker_of(opener._workers), signal.SIGSTOP)  # nobody opens anything
    try:
        (again, once_more), mine = cut(preparer[1], reader[1], FILES["webp"], FILES["webp"])
    finally:
        os.kill(pid, signal.SIGCONT)
    assert [tile.cell for tile in again.tiles] == [tile.cell for tile in first.tiles]
    assert once_more.tiles == first.tiles
    assert mine.watch.counts.pictures == 2
    assert (opener.counts.queries - counts.queries, opener.counts.hits - counts.hits) == (3, 2)


def test_a_picture_with_a_uuid_is_kept_once_it_was_opened(preparer, reader):
    mine = replace(reader[1].timed(scope="me"), handles=type(reader[1].handles)(2**20))
    with pytest.raises(InvalidMedia):
        preparer[1]._tile_all([mine.picture(part(BROKEN["cut short"], uuid="x"))], None)
    with pytest.raises(InvalidMedia, match="names no image"):
        mine.picture(MediaPart(None, "image", "x"))
    whole = preparer[1]._tile_all([mine.picture(part(FILES["png"], uuid="x"))], None)
    assert preparer[1]._tile_all([mine.picture(MediaPart(None, "image", "x"))], None) == whole


def test_frames_of_a_video_are_those_that_are_read_here(preparer, reader, tmp_path):
    content = film(tmp_path / "grey.mp4", frames=12).read_bytes()
    found = []
    for its, reads in zip(preparer, reader, strict=True):
        mine = reads.timed(MediaOptions(num_frames=5))
        frames = mine.video(part(content, "video"))
        found.append(([np.asarray(frame) for frame in frames], its._tile_all([frames], None), mine))
    (here, here_cut, one), (there, there_cut, other) = found
    assert len(there) == 5
    assert all((a == b).all() for a, b in zip(here, there, strict=True))
    assert [digests(picture) for picture in there_cut] == [digests(picture) for picture in here_cut]
    assert other.watch.counts == one.watch.counts
    with pytest.raises(InvalidMedia, match=r"the video is not a video that can be read \(it is a PNG"):
        reader[1].timed().video(part(FILES["png"], "video"))


def test_a_request_that_is_given_up_frees_worker_and_cells_in_the_middle_of_a_picture(preparer, reader, opener):
    opener.forget()
    os.kill(first := worker_of(opener._workers), signal.SIGSTOP)
    mine, errors = reader[1].timed(), []

    def ask() -> None:
        try:
            preparer[1]._tile_all([mine.picture(part(saved(noise(seed=40), "PNG")))], None)
        except TilewiseError as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    until(lambda: not opener._workers._idle)
    assert opener.store.num_free == CELLS - TILING.max_tiles - 1
    mine.budget.cancel()
    thread.join()
    assert [type(error) for error in errors] == [Cancelled]
    assert opener.store.num_free == CELLS
    assert worker_of(opener._workers) != first
    assert cut(preparer[1], reader[1], FILES["png"])


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_crashes_costs_one_request_and_one_that_is_killed_none(preparer, reader, opener, caplog, number):
    """Whoever is short of memory kills; a file that ends its process in any other way is not tried again."""
    os.kill(first := worker_of(opener._workers), signal.SIGSTOP)

    def end() -> None:
        until(lambda: not opener._workers._idle)
        os.kill(first, number)
        os.kill(first, signal.SIGCONT)

    threading.Thread(target=end).start()
    content = saved(noise(seed=50 + number), "PNG")
    if number == signal.SIGKILL:
        assert cut(preparer[1], reader[1], content)
    else:
        with pytest.raises(InvalidMedia, match=r"messages\[0\].content\[0\]: a picture ended the process that opened"):
            cut(preparer[1], reader[1], content)
    assert f"ended with signal {number:d}" in caplog.text
    assert cut(preparer[1], reader[1], FILES["png"])


def test_a_file_whose_processes_are_killed_twice_is_to_be_sent_later(preparer, reader, opener):
    """The kernel has killed both, of which it is told to kill them before any other process of the server."""
    opener._workers._borrow = stopped(opener._workers._borrow)
    with pytest.raises(Overloaded, match="The process that opened a picture was killed, and so was the next one"):
        cut(preparer[1], reader[1], saved(noise(seed=60), "PNG"))
    del opener._workers._borrow
    assert cut(preparer[1], reader[1], FILES["png"])


def stopped(borrow):
    """Return a `_borrow` whose workers are killed, as if there had been no memory."""

    def taken(*args, **options):
        worker = borrow(*args, **options)
        if worker is not None:
            score = Path(f"/proc/{worker.process}/oom_score_adj")
            until(lambda: int(score.read_text()) == 1000)
            os.kill(worker.process, signal.SIGKILL)
        return worker

    return taken


def test_the_process_that_forks_others_is_replaced_too(preparer, reader, opener):
    workers, first = opener._workers, opener._workers._server
    os.kill(first._process.pid, signal.SIGKILL)
    until(lambda: first.has_ended)
    os.kill(worker_of(workers), signal.SIGKILL)
    (found,), _ = cut(preparer[1], reader[1], saved(noise(seed=80), "PNG"))
    assert found.tiles
    assert workers._server is not first


def test_workers_go_round_from_request_to_request(opener):
    workers = opener._workers
    os.kill(pid := worker_of(workers), signal.SIGSTOP)
    order: list[str] = []

    def ask(name: str, count: int) -> None:
        file = UnopenedFile(FILES["png"], False, "", "", Opening(), MediaBudget())
        jobs = [CutPictureJob(file, TILING, tuple(range(7)))] * count
        workers.do(jobs, [lambda told, link: order.append(name)] * count, file.budget)

    large = threading.Thread(target=ask, args=("large", 5))
    large.start()
    until(lambda: not workers._idle)
    small = threading.Thread(target=ask, args=("small", 1))
    small.start()
    until(lambda: len(workers._waiting) == 1)
    os.kill(pid, signal.SIGCONT)
    large.join()
    small.join()
    assert order == ["large", "small", *["large"] * 4]


def test_more_tiles_than_there_is_memory_for_are_refused(preparer, reader):
    contents = [saved(noise(seed=60 + number), "PNG") for number in range(10)]
    with pytest.raises(InvalidRequest, match="may have 70 tiles, and there is memory for 64"):
        cut(preparer[1], reader[1], *contents)


def test_a_worker_opens_nothing_else_and_has_bounded_memory(opener):
    worker = worker_of(opener._workers)
    limits = Path(f"/proc/{worker}/limits").read_text().splitlines()
    soft = {line[:26].strip(): line[26:].split()[0] for line in limits}
    assert int(soft["Max open files"]) < 64
    assert (soft["Max file size"], soft["Max core file size"]) == ("0", "0")
    filtered = "Seccomp:\t2" in Path(f"/proc/{worker}/status").read_text()
    assert filtered or soft["Max processes"] == "0"
    assert int(soft["Max address space"]) < 2**32
