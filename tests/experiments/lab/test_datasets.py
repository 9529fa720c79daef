"""Data files: found, downloaded, missing or another one."""

import hashlib
import http.server
import json
import threading
from functools import partial

import numpy
import pytest

from experiments.lab import datasets
from experiments.lab.datasets import VARIABLE, Origin, data_file

CONTENT = b'{"train": []}'


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Of a server on this machine, with an empty cache to download into."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "chorales.json").write_bytes(CONTENT)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(datasets.pooch, "os_cache", lambda name: tmp_path / "cache" / name)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = partial(Quiet, directory=tmp_path / "served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/chorales.json"
    server.shutdown()
    server.server_close()


def serve(monkeypatch, address, content=CONTENT):
    origin = Origin(address, hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(datasets.ORIGINS, "jsb_chorales.json", origin)


def test_a_file_is_downloaded_once(address, monkeypatch):
    serve(monkeypatch, address)
    path = data_file("jsb_chorales.json")
    assert json.loads(path.read_text()) == {"train": []}
    serve(monkeypatch, "http://127.0.0.1:9/nothing")
    assert data_file("jsb_chorales.json") == path


def test_another_file_than_expected(address, monkeypatch):
    serve(monkeypatch, address, b"what was pinned")
    with pytest.raises(ValueError, match=rf"jsb_chorales.json from {address}.*{VARIABLE}"):
        data_file("jsb_chorales.json")


def test_no_connection(address, monkeypatch):
    serve(monkeypatch, "http://127.0.0.1:9/nothing")
    with pytest.raises(ValueError, match=rf"jsb_chorales.json from http://127.*{VARIABLE}"):
        data_file("jsb_chorales.json")


def test_a_file_that_is_missing_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"mnist.npz \(folder .*PYRO_MIXTURES_DATA.*https://stor"):
        data_file("mnist.npz")
    numpy.savez(tmp_path / "mnist.npz", x_train=numpy.zeros(3))
    assert data_file("mnist.npz") == tmp_path / "mnist.npz"
