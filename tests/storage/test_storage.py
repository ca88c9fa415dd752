"""Paths, files and folders of a bucket, and what is said when there is none."""

import http.server
import json
import logging
import threading

import pytest
from emulator import free_port

from lgrpo import __main__
from lgrpo.cli import common
from lgrpo.errors import UserError
from lgrpo.runs import storage
from lgrpo.runs.lock import Lock


def test_what_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.place("~/run") == tmp_path / "run" and storage.place(tmp_path) == tmp_path
    for wrong in ("s3://bucket/run", "gs:/bucket/run", "gs://", "gs://No_Bucket/x", "file:///tmp/x"):
        with pytest.raises(UserError, match=r"no path; give a folder of this machine, or gs://BUCKET/FOLDER as text"):
            storage.place(wrong)


def test_without_gcsfs(monkeypatch, capsys):
    honest = storage.importlib.util.find_spec
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None if name == "gcsfs" else honest(name))
    storage._open_bucket.cache_clear()
    assert common.ended(lambda: __main__.run(["report", "gs://bucket/run", "--out", "x.html"])) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: gs://bucket: reading and writing buckets needs gcsfs; pip install 'lgrpo[gcs]' (or gcsfs)"
    ]


def test_files_and_folders(bucket, tmp_path):
    storage.write_text(bucket / "a" / "b.txt", "one\n")
    storage.write_bytes(bucket / "a" / "deep" / "c", b"\xef\xbb\xbftwo")
    storage.write_text(bucket.parent / f"{bucket.name}0" / "x", "a neighbour whose name begins alike")
    assert storage.files_below(bucket) == ["a/b.txt", "a/deep/c"] and storage.files_below(bucket / "none") == []
    assert storage.text_of(bucket / "a" / "deep" / "c") == "two"
    here = storage.local(bucket / "a")
    assert (here / "b.txt").read_text() == "one\n" and storage.local(bucket / "a" / "b.txt").read_text() == "one\n"
    assert not storage.local(bucket / "none").exists() and storage.local(tmp_path) == tmp_path
    storage.upload(here, bucket / "copy", last="b.txt")
    storage.move_folder(bucket / "a", bucket / "moved")
    assert storage.files_below(bucket) == ["copy/b.txt", "copy/deep/c", "moved/b.txt", "moved/deep/c"]
    storage.remove_folder(bucket / "moved", "b.txt")
    storage.remove_folder(bucket / "moved")
    assert storage.files_below(bucket) == ["copy/b.txt", "copy/deep/c"]
    assert not (bucket / "moved").exists() and (bucket / "copy").is_dir()


def test_what_goes_first_and_what_comes_last(bucket, tmp_path, monkeypatch):
    """A move or an upload that is interrupted leaves nothing that looks whole."""

    class KilledError(Exception):
        pass

    def killed(*_):
        raise KilledError

    for name in ("done", "z"):
        (tmp_path / name).write_text(name)
        storage.write_text(bucket / "from" / name, name)
    system = storage._system(bucket)
    honest = system.put_file
    monkeypatch.setattr(system, "put_file", lambda here, there: honest(here, there) if here.endswith("z") else killed())
    with pytest.raises(KilledError):
        storage.upload(tmp_path, bucket / "up", last="done")
    assert storage.files_below(bucket / "up") == ["z"]
    remove = system.rm_file
    monkeypatch.setattr(system, "rm_file", lambda there: remove(there) if there.endswith("done") else killed())
    with pytest.raises(KilledError):
        storage.move_folder(bucket / "from", bucket / "to", "done")
    assert storage.files_below(bucket) == ["from/z", "to/done", "to/z", "up/z"]


def test_writes_that_depend_on_what_is_there(bucket):
    path = bucket / "object"
    assert storage.read_version(path) == ("", 0)
    first = storage.write_version(path, "one", 0)
    assert first and not storage.write_version(path, "two", 0) and not storage.write_version(path, "two", first - 1)
    assert storage.write_version(path, "one", 0) == first, "an answer that was lost: what is there is ours"
    second = storage.write_version(path, "two", first)
    assert storage.read_version(path) == ("two", second)
    third = storage.append(path, b" and three", second)
    assert storage.read_version(path) == ("two and three", third)
    assert storage.append(path, b" lost", second) == 0 and storage.read_version(path) == ("two and three", third)
    assert storage.files_below(bucket) == ["object"], "parts do not stay"
    storage.remove_version(path, third)
    storage.remove_version(path, third)
    assert storage.read_version(path) == ("", 0)


@pytest.fixture
def anew(monkeypatch):
    """Clients that begin again, as in a process of its own."""

    def forget():
        storage._open_bucket.cache_clear()
        storage._client.cache_clear()

    forget()
    monkeypatch.setattr(storage, "PATIENCE", 0.5)
    yield
    forget()


def one_line(work):
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def answering(monkeypatch, anew):
    """A storage that lets nobody in: answering(GET, POST) sets its codes."""
    codes = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code = codes[self.command]
            body = (
                b"{}"
                if code == 200
                else json.dumps({"error": {"code": code, "message": "account x@y lacks it; Bearer ya29.secret"}}).encode()
            )
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
    yield lambda get, post=403: codes.update(GET=get, POST=post)
    server.shutdown()
    server.server_close()


def test_a_bucket_that_may_not_be_read_or_written(answering, capsys):
    for code, why in ((403, "no permission"), (401, "no valid Google credentials"), (404, "no such bucket or object")):
        answering(code)
        text = one_line(lambda: storage.place("gs://bucket/run"))
        assert text.startswith(f"gs://bucket: {why} (") and "secret" not in text
    answering(200)
    text = one_line(lambda: Lock("gs://bucket/run"))
    assert text.startswith("gs://bucket/run: no permission (") and "role Storage Object Admin" in text and "secret" not in text
    answering(403)
    storage._open_bucket.cache_clear()
    assert common.ended(lambda: __main__.run(["ask", "gs://bucket/run", "why?"])) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_storage_that_does_not_answer(anew, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    assert "gs://bucket: the storage does not answer" in one_line(lambda: storage.place("gs://bucket/run"))


def test_a_bucket_that_is_not_there(emulator):
    assert "gs://nobody: no such bucket" in one_line(lambda: storage.place("gs://nobody/run"))


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Authorization: Bearer abc.def-1", "abc"),
        ("GET https://x/o?alt=media&access_token=abcdef&x=1", "abcdef"),
        ("https://x/o?X-Goog-Signature=abcdef", "abcdef"),
        ("upload?uploadType=resumable&upload_id=ABPnzm", "ABPnzm"),
        ("token ya29.a0Af_x-y", "a0Af"),
    ],
)
def test_no_credential_is_shown(text, gone):
    assert gone in text and gone not in storage.clean(text)


def test_orbax_logs_no_tracebacks_of_a_bucket(bucket):
    """It logs each failure of a save three times, with all its frames."""
    log = logging.getLogger("absl")
    seen = (RuntimeError, RuntimeError("x"), None)
    record = log.makeRecord("absl", logging.ERROR, "x.py", 1, "failed: %s", ("Bearer abc",), seen)
    assert log.filter(record) and record.getMessage() == "failed: Bearer ..." and record.exc_info is None


def test_errors_of_this_machine_stay_what_they_are():
    for error in (FileNotFoundError(2, "No such file or directory", "b/x"), OSError("disk"), ValueError("x"), KeyError("x")):
        assert storage.reason(error) == ""
