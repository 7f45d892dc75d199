"""Objects behave alike as files and in S3, and S3's refusals arrive as classes."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from boto3.exceptions import Boto3Error, RetriesExceededError
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError, ReadTimeoutError

from capstone_dagster.model_files import ModelUnavailable, locate_model
from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.errors import (
    ObjectNotFound,
    PermissionDenied,
    SourceChanged,
    SourceMissing,
    StorageError,
    StorageUnavailable,
    explained,
)
from capstone_dagster.storage.objects import ObjectStore, open_object_store
from capstone_dagster.storage.sources import decoded_metadata, download_source, encoded_metadata, head_source
from capstone_dagster.storage.written_objects import WrittenObjects
from tests.conftest import Aws


def never() -> None:
    raise AssertionError("no S3 client is needed here")


def check_object_store(store: ObjectStore, tmp_path: Path) -> None:
    assert store.keys("") == []
    assert not store.exists("a/b.json")
    with pytest.raises(ObjectNotFound, match=r"a/b\.json"):
        store.get_bytes("a/b.json")

    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"file")
    store.put_bytes("a/b.json", b"old")
    store.put_bytes("a/b.json", b"bytes")
    store.put_file("a/휴게실 1+2.jpg", source)
    store.put_bytes("ab", b"")
    store.get_file("a/휴게실 1+2.jpg", target)

    assert store.get_bytes("a/b.json") == b"bytes"
    assert target.read_bytes() == b"file"
    assert store.exists("a/b.json")
    assert store.keys("a/") == ["a/b.json", "a/휴게실 1+2.jpg"]
    assert store.keys("") == ["a/b.json", "a/휴게실 1+2.jpg", "ab"]
    with pytest.raises(ObjectNotFound):
        store.get_file("nothing", target)
    assert target.read_bytes() == b"file"


def check_deletion(store: ObjectStore) -> None:
    for key in ("a/b.json", "a/휴게실 1+2.jpg", "ab"):
        store.put_bytes(key, b"x")
    assert store.delete("a/") == 2
    assert store.delete("a/") == 0
    assert store.keys("") == ["ab"]
    for everything in ("", "/"):
        with pytest.raises(ValueError, match="expected a prefix"):
            store.delete(everything)
    assert store.delete("ab") == 1
    assert store.keys("") == []


def test_files(tmp_path: Path) -> None:
    store = open_object_store((tmp_path / "with blank").as_uri(), never)  # type: ignore[arg-type]

    check_object_store(store, tmp_path)
    assert store.url("a/b") == (tmp_path / "with blank" / "a" / "b").as_uri()
    check_deletion(open_object_store((tmp_path / "other").as_uri(), never))  # type: ignore[arg-type]
    assert list((tmp_path / "other").iterdir()) == []


def test_what_was_written_is_not_fetched_back_within_a_bound(tmp_path: Path) -> None:
    beneath = open_object_store(tmp_path.as_uri(), never)  # type: ignore[arg-type]
    check_object_store(WrittenObjects(open_object_store((tmp_path / "a").as_uri(), never)), tmp_path)  # type: ignore[arg-type]
    check_deletion(WrittenObjects(open_object_store((tmp_path / "b").as_uri(), never)))  # type: ignore[arg-type]
    store = WrittenObjects(beneath, most_bytes=10)

    def answered_from_memory(key: str) -> bool:
        """What stands beneath changes, as it never does, to show which of the two answers."""
        beneath.put_bytes(key, b"?")
        return store.get_bytes(key) != b"?"

    store.put_bytes("detections/d/1", b"four")
    store.put_bytes("references/assets/events/v.json", b"x")
    assert answered_from_memory("detections/d/1")
    assert not answered_from_memory("references/assets/events/v.json")

    store.put_bytes("analyses/a/2", b"seven b")
    store.put_bytes("analyses/a/3", b"more than ten bytes")
    assert answered_from_memory("analyses/a/2")
    assert not answered_from_memory("detections/d/1")
    assert not answered_from_memory("analyses/a/3")

    store.delete("analyses/")
    with pytest.raises(ObjectNotFound):
        store.get_bytes("analyses/a/2")


def test_s3(aws: Aws, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    store = open_object_store("s3://capstone-derived/some/prefix", lambda: s3)

    check_object_store(store, tmp_path)
    assert store.url("a/b.json") == "s3://capstone-derived/some/prefix/a/b.json"
    head = s3.head_object(Bucket="capstone-derived", Key="some/prefix/a/b.json")
    assert head["ContentType"] == "application/json"
    check_deletion(open_object_store("s3://capstone-derived/some/pre", lambda: s3))
    assert store.exists("a/b.json")


def test_an_interrupted_write_leaves_the_old_object(tmp_path: Path) -> None:
    store = open_object_store(tmp_path.as_uri(), never)  # type: ignore[arg-type]
    store.put_bytes("a", b"old")

    with pytest.raises(StorageUnavailable):
        store.put_file("a", tmp_path / "missing")

    assert store.get_bytes("a") == b"old"
    assert store.keys("") == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_addresses_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="https://x"):
        open_object_store("https://x", never)  # type: ignore[arg-type]


def test_head_source_names_the_version(aws: Aws) -> None:
    s3 = aws.client("s3")
    put = [
        s3.put_object(Bucket="capstone-raw", Key="cam/v 1.mp4", Body=body, Metadata={"Video-Id": "84"})
        for body in (b"one", b"other")
    ]

    latest = head_source(s3, "capstone-raw", "cam/v 1.mp4")
    first = head_source(s3, "capstone-raw", "cam/v 1.mp4", put[0]["VersionId"])

    assert (latest.version_id, latest.size_bytes) == (put[1]["VersionId"], 5)
    assert (first.version_id, first.size_bytes) == (put[0]["VersionId"], 3)
    assert f'"{first.etag}"' == put[0]["ETag"]
    assert latest.metadata == {"video-id": "84"}
    assert abs(latest.last_modified - datetime.now(UTC)) < timedelta(minutes=5)


def test_download_is_of_that_upload_or_fails(aws: Aws, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket="capstone-raw", Key="d.mp4", Body=b"one")
    old = head_source(s3, "capstone-raw", "d.mp4")
    s3.put_object(Bucket="capstone-raw", Key="d.mp4", Body=b"two")
    target = tmp_path / "video"

    def download(version_id: str | None) -> None:
        download_source(
            s3, bucket="capstone-raw", key="d.mp4", version_id=version_id, etag=old.etag, path=target
        )

    download(old.version_id)
    assert target.read_bytes() == b"one"
    with pytest.raises(SourceChanged, match="overwritten"):
        download(None)


@pytest.mark.parametrize(
    ("header", "text"),
    [
        pytest.param("gate", "gate", id="ascii"),
        pytest.param(encoded_metadata("현관"), "현관", id="ours"),
        pytest.param(encoded_metadata("현관 앞 " * 30), "현관 앞 " * 30, id="long"),
        pytest.param(encoded_metadata("=?a"), "=?a", id="what only looks encoded"),
        pytest.param("=?UTF-8?B?7ZiE6rSA?=", "현관", id="as S3 answers"),
        pytest.param("=?UTF-8?Q?=ED=98=84=EA=B4=80?=", "현관", id="quoted-printable"),
        pytest.param("a =? b", "a =? b", id="no word"),
        pytest.param("현관".encode().decode("latin-1"), "현관", id="raw bytes"),
        pytest.param("caf\xe9", "caf\xe9", id="no UTF-8"),
        pytest.param("=?UTF-8?B?A?=", "=?UTF-8?B?A?=", id="broken"),
        pytest.param("=?nothing?B?AAAA?=", "=?nothing?B?AAAA?=", id="no charset"),
        pytest.param("=?UTF-8?B?AA==?=", "=?UTF-8?B?AA==?=", id="a NUL"),
    ],
)
def test_metadata_is_the_text_that_the_uploader_meant(header: str, text: str) -> None:
    assert encoded_metadata(header).isascii()
    assert decoded_metadata(header) == text


def test_head_source_decodes_metadata(aws: Aws) -> None:
    s3 = aws.client("s3")
    metadata = {"camera": encoded_metadata("현관")}
    s3.put_object(Bucket="capstone-raw", Key="현관/a.mp4", Body=b"a", Metadata=metadata)

    assert head_source(s3, "capstone-raw", "현관/a.mp4").metadata == {"camera": "현관"}


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda s3, path: head_source(s3, "capstone-raw", "gone.mp4"), id="head"),
        pytest.param(
            lambda s3, path: download_source(
                s3, bucket="capstone-raw", key="gone.mp4", version_id=None, etag="x", path=path
            ),
            id="download",
        ),
    ],
)
def test_missing_source(aws: Aws, tmp_path: Path, call: Callable[[object, Path], object]) -> None:
    with pytest.raises(SourceMissing, match="gone"):
        call(aws.client("s3"), tmp_path / "video")


@pytest.mark.parametrize(
    ("code", "status", "source", "expected"),
    [
        ("AccessDenied", 403, False, PermissionDenied),
        ("InternalError", 500, False, StorageUnavailable),
        ("SlowDown", 503, True, StorageUnavailable),
        ("403", 403, True, "source-forbidden"),
        ("412", 412, True, "source-changed"),
        ("NoSuchVersion", 404, True, "source-missing"),
        ("InvalidObjectState", 403, True, "source-archived"),
        ("KMS.DisabledException", 400, True, "source-archived"),
    ],
)
def test_s3s_answers_have_classes(code: str, status: int, source: bool, expected: type | str) -> None:
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(StorageError) as caught, explained("s3://b/k", source=source):
        raise ClientError(answer, "GetObject")  # type: ignore[arg-type]
    assert (
        caught.value.failure_class == expected
        if isinstance(expected, str)
        else type(caught.value) is expected
    )
    assert "s3://b/k" in str(caught.value)


def test_uploading_to_a_missing_bucket_is_told_alike_whole_or_as_a_file(aws: Aws, tmp_path: Path) -> None:
    store = open_object_store("s3://no-such-bucket/prefix", lambda: aws.client("s3"))
    source = tmp_path / "source"
    source.write_bytes(b"file")

    with pytest.raises(ObjectNotFound, match="s3://no-such-bucket/prefix/a"):
        store.put_bytes("a", b"bytes")
    with pytest.raises(ObjectNotFound, match="s3://no-such-bucket/prefix/a"):
        store.put_file("a", source)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [(403, "AccessDenied", PermissionDenied), (500, "InternalError", StorageUnavailable)],
)
def test_refused_transfers_are_told_alike_whole_or_as_a_file(
    tmp_path: Path, status: int, code: str, expected: type[Exception]
) -> None:
    s3 = boto3.client(
        "s3",
        region_name="ap-northeast-2",
        aws_access_key_id="x",
        aws_secret_access_key="x",
        config=Config(retries={"total_max_attempts": 1}),
    )

    class Answer:
        def stream(self, **_: object) -> Iterator[bytes]:
            yield f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()

    def answer(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        return AWSResponse(request.url, status, {}, Answer())

    s3.meta.events.register("before-send.s3", answer)
    store = open_object_store("s3://bucket/prefix", lambda: s3)
    source = tmp_path / "source"
    source.write_bytes(b"file")

    for put in (lambda: store.put_bytes("a", b"bytes"), lambda: store.put_file("a", source)):
        with pytest.raises(expected, match="s3://bucket/prefix/a"):
            put()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(
            RetriesExceededError(ReadTimeoutError(endpoint_url="u")), StorageUnavailable, id="retries"
        ),
        pytest.param(
            RetriesExceededError(
                ClientError({"Error": {"Code": "AccessDenied", "Message": "m"}}, "GetObject")
            ),
            PermissionDenied,
            id="refused at last",
        ),
        pytest.param(Boto3Error("something"), StorageUnavailable, id="any other"),
    ],
)
def test_boto3s_own_errors_have_classes(error: Exception, expected: type[Exception]) -> None:
    with pytest.raises(expected, match="s3://b/k"), explained("s3://b/k"):
        raise error


def test_models_are_found_and_fetched_once(aws: Aws, tmp_path: Path) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket="capstone-derived", Key="models/m.pt", Body=b"weights")
    local = tmp_path / "own.pt"
    local.write_bytes(b"own")
    cache = tmp_path / "cache"

    assert locate_model(str(local), cache=cache, s3=never) == local  # type: ignore[arg-type]
    fetched = locate_model("s3://capstone-derived/models/m.pt", cache=cache, s3=lambda: s3)
    assert (fetched.name, fetched.read_bytes()) == ("m.pt", b"weights")
    fetched.write_bytes(b"cached")
    again = locate_model("s3://capstone-derived/models/m.pt", cache=cache, s3=lambda: s3)
    assert again.read_bytes() == b"cached"
    s3.put_object(Bucket="capstone-derived", Key="models/m.pt", Body=b"newer")
    newer = locate_model("s3://capstone-derived/models/m.pt", cache=cache, s3=lambda: s3)
    assert newer.read_bytes() == b"newer"


@pytest.mark.parametrize("name", ["/nowhere/m.pt", "some/m.pt", "no-such-export_openvino_model"])
def test_models_that_are_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"\.pt file"):
        locate_model(name, cache=tmp_path, s3=never)  # type: ignore[arg-type]


def test_models_that_s3_does_not_have(aws: Aws, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="no such object"):
        locate_model("s3://capstone-derived/none.pt", cache=tmp_path, s3=lambda: aws.client("s3"))
