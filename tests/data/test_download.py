from __future__ import annotations

import errno
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pooch.core
import pytest
from filelock import FileLock

from spiketide.data import data_root, download
from spiketide.data.download import RemoteFile, fetch
from spiketide.errors import DataError

CONTENT = bytes(range(256)) * 2000  # 512 kB: more than one chunk


class _Handler(BaseHTTPRequestHandler):
    """Serves CONTENT; the server's attributes say how badly."""

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        if self.path.endswith("missing"):
            self.send_error(404)
            return
        start = 0
        if server.ranges[-1] and server.resumes:
            start = int(server.ranges[-1].removeprefix("bytes=").rstrip("-"))
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        else:
            self.send_response(200)
        rest = server.content[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.cuts > 0:  # break the connection half-way
            server.cuts -= 1
            self.wfile.write(rest[: len(rest) // 2])
            return
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)  # between attempts
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.content, server.resumes, server.cuts, server.ranges = CONTENT, True, 0, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def remote(server, name="set/data.bin", content=CONTENT) -> RemoteFile:
    url = f"http://127.0.0.1:{server.server_port}/{name.rsplit('/')[-1]}"
    return RemoteFile(name, url, len(content), hashlib.sha256(content).hexdigest())


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_downloads_once(server, tmp_path):
    file = remote(server)
    (path,) = fetch([file], tmp_path, title="Toy")
    assert path == tmp_path / "set" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert visible(path.parent) == ["data.bin"]
    fetch([file], tmp_path, title="Toy")
    assert server.ranges == [None]


def test_who_waits_for_another_process_says_so_once(server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    caplog.set_level("INFO", "spiketide")
    file, found = remote(server), []
    (tmp_path / "set").mkdir()
    with FileLock(tmp_path / "set" / ".download.lock"):
        waiting = threading.Thread(target=lambda: found.extend(fetch([file], tmp_path, title="Toy")))
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive()
        (said,) = caplog.messages
    waiting.join(30.0)
    assert [path.read_bytes() for path in found] == [CONTENT]
    assert "waiting for another process" in said and str(tmp_path / "set") in said
    assert caplog.messages == [said]


def test_two_at_once_download_once(server, tmp_path):
    found = []
    threads = [
        threading.Thread(target=lambda: found.extend(fetch([remote(server)], tmp_path, title="Toy")))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / "set" / "data.bin"] * 3
    assert server.ranges == [None]


def test_goes_on_after_a_broken_connection(server, tmp_path):
    server.cuts = 2
    (path,) = fetch([remote(server)], tmp_path, title="Toy")
    assert path.read_bytes() == CONTENT
    assert server.ranges[0] is None
    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for asked in server.ranges[1:]]
    assert len(starts) == 2
    assert len(CONTENT) // 3 < starts[0] < starts[1] < len(CONTENT)
    assert visible(path.parent) == ["data.bin"]


def test_an_interrupted_download_has_no_final_name_and_the_next_run_goes_on(server, tmp_path):
    server.cuts = 3  # all attempts of the first run
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch([remote(server)], tmp_path, title="Toy")
    assert visible(tmp_path / "set") == ["data.bin.part"]
    have = (tmp_path / "set" / "data.bin.part").stat().st_size
    assert len(CONTENT) // 2 < have < len(CONTENT)
    (path,) = fetch([remote(server)], tmp_path, title="Toy")
    assert path.read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={have}-"
    assert visible(path.parent) == ["data.bin"]


def test_ctrl_c_leaves_no_file_under_the_final_name(server, tmp_path, monkeypatch):
    def interrupt(self, url, output_file, pooch):
        self.part.write_bytes(CONTENT[:100])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download._Resuming, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch([remote(server)], tmp_path, title="Toy")
    assert visible(tmp_path / "set") == ["data.bin.part"]
    (path,) = fetch([remote(server)], tmp_path, title="Toy")
    assert path.read_bytes() == CONTENT


def test_a_server_that_cannot_resume_sends_all_again(server, tmp_path):
    server.cuts, server.resumes = 1, False
    (path,) = fetch([remote(server)], tmp_path, title="Toy")
    assert path.read_bytes() == CONTENT


def test_a_stale_part_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.bin.part").write_bytes(b"x" * (len(CONTENT) + 5))
    (path,) = fetch([remote(server)], tmp_path, title="Toy")
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    server.content = b"y" + CONTENT[1:]
    with pytest.raises(DataError, match="not the right one"):
        fetch([remote(server)], tmp_path, title="Toy")
    assert not list(tmp_path.iterdir())
    assert len(server.ranges) == 1 + download.RETRIES


def test_the_error_says_what_to_put_where(server, tmp_path):
    good, bad = remote(server), remote(server, "set/missing")
    with pytest.raises(DataError) as caught:
        fetch([good, bad], tmp_path, title="Toy", hint="or so,")
    message = str(caught.value)
    assert "404" in message
    assert f"{tmp_path / 'set' / 'missing'}  512,000 bytes, sha256 {bad.sha256}" in message
    assert bad.url in message
    assert "or so," in message
    assert "SPIKETIDE_DATA" in message
    assert str(tmp_path / "set" / "data.bin") not in message  # that one came


def test_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 0)
    with pytest.raises(DataError, match="no answer or a broken one"):
        fetch([RemoteFile("set/a", "http://127.0.0.1:9/a", 1, None)], tmp_path / "typo" / "root", title="Toy")
    assert not list(tmp_path.iterdir())  # folders made for nothing are gone
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="no answer or a broken one"):
        fetch([RemoteFile("set/a", "http://127.0.0.1:9/a", 1, None)], tmp_path / "mine", title="Toy")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and not list((tmp_path / "mine").iterdir())


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        fetch([remote(server)], tmp_path / "file", title="Toy")


def test_full_disk(server, tmp_path, monkeypatch):
    def full(self, url, output_file, pooch):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(download._Resuming, "__call__", full)
    with pytest.raises(DataError, match="the disk is full"):
        fetch([remote(server)], tmp_path, title="Toy")


def test_root_order(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKETIDE_DATA", str(tmp_path / "environment"))
    assert data_root(tmp_path / "argument") == tmp_path / "argument"
    assert data_root() == tmp_path / "environment"
    monkeypatch.setenv("SPIKETIDE_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_root().name == "spiketide"
    assert data_root() == download.user_cache()
    assert data_root("~/x") == Path.home() / "x"
