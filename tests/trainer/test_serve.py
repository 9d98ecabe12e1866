"""The server over real HTTP, as a process of its own, with a real model."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

from tests.preprocess import photo_sets
from tests.trainer import servers
from tfrecords.errors import FlagError, UserError
from trainer import predictor, serve

PLACES = 4
MAX_UPLOAD = 2 << 20
JPEG, FORM = "image/jpeg", "multipart/form-data; boundary=xyz"
PHOTO = photo_sets.photo(240, 320, seed=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return servers.tiny_run(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(run):
    flags = ("--max_upload_mb=2", "--max_pixels=1000000", f"--queue={PLACES}")
    with servers.started(run, *flags) as server:
        yield server
        server.process.terminate()
        out, err = server.process.communicate(timeout=20)
    assert (server.process.returncode, err) == (0, "")
    assert out.startswith("stopped: ")


@pytest.fixture(scope="module")
def model(run):
    return predictor.load(run)


def form(*files: bytes, names: tuple[str, ...] = ("a.jpg", "b.jpg")) -> bytes:
    parts = [
        f'--xyz\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
        + file
        + b"\r\n"
        for name, file in zip(names, files, strict=False)
    ]
    return b"".join(parts) + b"--xyz--\r\n"


def turned(pixels: np.ndarray, orientation: int) -> bytes:
    """A lossless photo that EXIF turns upright: orientation 6 is a quarter turn clockwise."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = {1: pixels, 3: np.rot90(pixels, 2), 6: np.rot90(pixels, 1)}[orientation]
    return photo_sets.encode(Image.fromarray(np.ascontiguousarray(lying)), "PNG", exif=exif)


def test_an_answer_is_what_the_model_says(server, model):
    answer = server.ask("POST", "/predict", PHOTO, content_type=JPEG)
    (said,) = model.predict_bytes([PHOTO])
    assert answer.status == 200
    assert list(answer.json) == ["photo", "width", "height", "box", "names"]
    assert (answer.json["photo"], answer.json["width"], answer.json["height"]) == (None, 320, 240)
    for side in ("xmin", "ymin", "xmax", "ymax"):
        assert answer.json["box"][side] == pytest.approx(getattr(said.box, side), abs=0.05)
    names = answer.json["names"]
    assert {one["name"] for one in names} == set(servers.CLASS_NAMES)
    assert [one["probability"] for one in names] == pytest.approx(
        [one.probability for one in said.names], abs=1e-4
    )


def test_a_form_gives_the_same_answer_and_the_name_of_its_file(server):
    plain = server.ask("POST", "/predict", PHOTO).json
    body = form(PHOTO, names=("Käfer <1>.jpg",))
    answer = server.ask("POST", "/predict", body, content_type=FORM)
    assert answer.json == {**plain, "photo": "Käfer <1>.jpg"}


def test_a_photo_turned_by_exif_is_answered_as_people_see_it(server):
    pixels = photo_sets.pixels(300, 200, seed=3)
    upright = server.ask("POST", "/predict", turned(pixels, 1)).json
    for orientation in (3, 6):
        answer = server.ask("POST", "/predict", turned(pixels, orientation)).json
        assert (answer["width"], answer["height"]) == (200, 300)
        assert list(answer["box"].values()) == pytest.approx(list(upright["box"].values()), abs=2)


def test_top_says_how_many_names_come(server):
    for top, count in (("1", 1), ("2", 2), ("99999", 3)):
        answer = server.ask("POST", f"/predict?top={top}", PHOTO)
        assert len(answer.json["names"]) == count
    for top in ("0", "-1", "many", "1e3", "9" * 40, ""):
        answer = server.ask("POST", f"/predict?top={top}", PHOTO)
        assert answer.status == 400
        assert "top=" in answer.json["error"]["detail"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "sentence"),
    [
        (b"", {}, 400, "no bytes"),
        (b"hello", {}, 422, "not an image but text"),
        (b"\0" * 1000, {}, 422, "zero bytes"),
        (PHOTO[:2000], {}, 422, "damaged"),
        (form(PHOTO[:2000]), {"content_type": FORM}, 422, "damaged"),
        (form(), {"content_type": FORM}, 400, "no file"),
        (form(b""), {"content_type": FORM}, 400, "no bytes"),
        (form(PHOTO, PHOTO), {"content_type": FORM}, 400, "one photo a request"),
        (PHOTO, {"content_type": FORM}, 400, "form cannot be read"),
        (PHOTO, {"content_type": "multipart/form-data"}, 400, "boundary"),
        (PHOTO, {"content_encoding": "gzip"}, 415, "gzip"),
        (bytes(MAX_UPLOAD + 1), {}, 413, "larger than 2 MB"),
        (bytes(30 << 20), {}, 413, "larger than 2 MB"),
        (bytes(30 << 20), {"transfer_encoding": "chunked"}, 413, "larger than 2 MB"),
        (form(bytes(MAX_UPLOAD + 1)), {"content_type": FORM}, 413, "larger than 2 MB"),
        (photo_sets.encode(Image.new("RGB", (1001, 1000)), "PNG"), {}, 413, "1001x1000 pixels"),
    ],
)
def test_what_is_no_photo_or_too_large_is_refused_with_a_sentence(
    server, body, headers, status, sentence
):
    if "transfer_encoding" in headers:
        body, headers = iter([body]), {}
    answer = server.ask("POST", "/predict", body, **headers)
    assert answer.status == status
    assert list(answer.json) == ["photo", "error"]
    assert sentence in answer.json["error"]["detail"]
    assert server.ask("POST", "/predict", PHOTO).status == 200


def test_a_photo_of_exactly_the_limits_is_judged(server):
    photo = photo_sets.encode(Image.new("RGB", (1000, 1000), "red"), "PNG")
    photo += b"\0" * (MAX_UPLOAD - len(photo))
    assert server.ask("POST", "/predict", photo).status == 200
    assert server.ask("POST", "/predict", form(photo), content_type=FORM).status == 200


def test_wrong_paths_and_methods_are_answered_with_a_sentence(server):
    answer = server.ask("GET", "/predict")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert "POST the photo" in answer.json["error"]["detail"]
    assert server.ask("POST", "/healthz", b"").status == 405
    assert "/openapi.json" in server.ask("GET", "/docs").json["error"]["detail"]


def test_the_description_fits_what_is_answered(server):
    description = server.ask("GET", "/openapi.json").json
    schemas = description["components"]["schemas"]
    assert description["paths"].keys() == {"/", "/predict", "/healthz", "/openapi.json"}
    for path, methods in description["paths"].items():
        for method in methods:
            assert server.ask(method.upper(), path, PHOTO).status == 200
    prediction = server.ask("POST", "/predict", PHOTO).json
    for schema, value in (
        ("Prediction", prediction),
        ("Box", prediction["box"]),
        ("Name", prediction["names"][0]),
        ("Error", server.ask("POST", "/predict", b"no").json),
        ("Health", server.ask("GET", "/healthz").json),
    ):
        assert set(value) == set(schemas[schema]["required"]) == set(schemas[schema]["properties"])


def test_the_page_may_load_nothing_from_elsewhere(server):
    page = server.ask("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "http://" not in page.json.replace('"http://www.w3.org', "")
    assert "https://" not in page.json


def test_a_full_queue_refuses_at_once_and_goes_on_when_there_is_room(server):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(servers.half_sent(server, PHOTO)) for _ in range(PLACES)]
        for body in (PHOTO, bytes(MAX_UPLOAD)):
            began = time.monotonic()
            answer = server.ask("POST", "/predict", body)
            assert time.monotonic() - began < 2
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "try again" in answer.json["error"]["detail"]
        assert server.ask("GET", "/healthz").status == 200
        for connection in held:
            connection.send(PHOTO[len(PHOTO) // 2 :])
            assert servers.answer(connection).status == 200
    # Clients that leave half-way give their places back.
    for _ in range(2 * PLACES):
        with servers.half_sent(server, PHOTO):
            pass
    assert server.ask("POST", "/predict", PHOTO).status == 200


@pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="open files are listed on Linux only"
)
def test_an_upload_is_never_written_to_disk(server):
    body = form(bytes(MAX_UPLOAD))
    connection = server.connect()
    connection.putrequest("POST", "/predict")
    connection.putheader("Content-Length", str(len(body)))
    connection.putheader("Content-Type", FORM)
    connection.endheaders(body[:-1])
    deadline = time.monotonic() + 10
    while not server.ask("GET", "/healthz").json["queue"]["taken"]:
        assert time.monotonic() < deadline
    time.sleep(0.3)  # all but the last byte has come
    open_files = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{server.process.pid}/fd")]
    assert not [path for path in open_files if path.startswith(tempfile.gettempdir() + "/#")]
    assert not [path for path in open_files if path.endswith("(deleted)")]
    connection.send(body[-1:])
    assert servers.answer(connection).status == 422
    connection.close()


def test_what_is_no_http_disturbs_nobody(server):
    for nonsense in (b"\x16\x03\x01\x02\0", b"GET\r\n\r\n", b"POST /predict HTTP/1.1\r\nHost: x\r\n"
                     b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"A" * 100_000):  # fmt: skip
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
            raw.sendall(nonsense)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while raw.recv(1 << 16):
                    pass
    assert server.ask("POST", "/predict", PHOTO).status == 200


def test_a_stopped_server_answers_what_it_has_and_ends_well(run):
    with servers.started(run, "--host=0.0.0.0") as server:
        assert server.ask("POST", "/predict", PHOTO).status == 200
        with servers.half_sent(server, PHOTO) as connection:
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                server.connect().connect()
            connection.send(PHOTO[len(PHOTO) // 2 :])
            assert servers.answer(connection).status == 200
        out, err = server.process.communicate(timeout=20)
    assert server.process.returncode == 0
    assert "stopped: 2 photos judged" in out
    assert "without a password" in err
    assert "Traceback" not in err


def test_addresses_where_nothing_can_listen_are_told_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is in use.*--port=0"):
            serve.main(["--model=none", f"--port={port}"])
    with pytest.raises(UserError, match="knows no address"):
        serve.main(["--model=none", "--host=no-such-host.invalid"])
    with pytest.raises(UserError, match="no such address"):
        serve.main(["--model=none", "--host=192.0.2.1"])


def test_wrong_models_and_flags_are_told(tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        serve.main([f"--model={tmp_path}", "--port=0"])
    for flag in ("--port=70000", "--queue=0", "--max_pixels=-1"):
        with pytest.raises(FlagError, match=flag.split("=")[0]):
            serve.main(["--model=x", flag])


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    code = (
        "import runpy, sys; sys.modules['uvicorn'] = None;"
        " runpy.run_module('trainer.serve', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install 'carbox[serve]'")
    assert "Traceback" not in done.stderr
