"""Configuration is refused early: the variable's name, the bad value, what is allowed."""

import pytest

from capstone_dagster.settings import (
    ConfigurationError,
    Settings,
    read_settings,
    unknown_variables,
    variable_name,
)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("CAPSTONE_SAMPLE_FPS", "-1", ["'-1'", "greater than or equal to 0"]),
        ("CAPSTONE_SAMPLE_FPS", "fast", ["'fast'", "number"]),
        ("CAPSTONE_DEVICE", "gpu", ["'gpu'", "cuda:0"]),
        ("CAPSTONE_COMPUTE", "cloud", ["'cloud'", "'local' or 'batch'"]),
        ("CAPSTONE_ENVIRONMENT", "staging", ["'staging'", "'prod'"]),
        ("CAPSTONE_LABELS", ",", ["at least one label"]),
        ("CAPSTONE_LABELS", "person, face,person", ["'person, face,person'", "once", "person occurs more"]),
        ("CAPSTONE_DERIVED_URL", "http://x", ["'http://x'", "s3://bucket/prefix"]),
        ("CAPSTONE_QUEUE_URL", "capstone-uploads", ["'capstone-uploads'", "https://sqs."]),
        ("CAPSTONE_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com", ["us-east-1.amazonaws.com'", "URL"]),
        ("CAPSTONE_QUEUE_URL", "arn:aws:sqs:us-east-1:1:q", ["'arn:aws:sqs:us-east-1:1:q'", "URL"]),
        ("CAPSTONE_ALERT_TOPIC_ARN", "alerts", ["'alerts'", "arn:aws:sns:"]),
        ("CAPSTONE_ALERT_TOPIC_ARN", "arn:aws:sqs:us-east-1:123456789012:q", [":q'", "SNS"]),
        ("CAPSTONE_TIMEZONE", "Seoul", ["'Seoul'", "Asia/Seoul"]),
        ("CAPSTONE_MODEL_SHA256", "abc", ["'abc'"]),
        ("CAPSTONE_CAMERA_PATTERN", "(", ["'('", "regular expression"]),
        ("CAPSTONE_CAMERA_PATTERN", "abc", ["one group"]),
        ("CAPSTONE_MESSAGES_PER_TICK", "0", ["'0'"]),
        ("POSTGRES_PORT", "x", ["'x'"]),
    ],
)
def test_a_wrong_setting_is_named(
    variable: str, value: str, message: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as caught:
        read_settings()

    for part in [variable, *message]:
        assert part in str(caught.value)


def test_a_wrong_option_is_not_blamed_on_the_environment_alone() -> None:
    with pytest.raises(ConfigurationError, match=r"--sample-fps \(in place of CAPSTONE_SAMPLE_FPS\) is 5000"):
        read_settings(sample_fps=5000.0)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CAPSTONE_SAMPLE_FSP", "CAPSTONE_SAMPLE_FPS"),
        ("CAPSTONE_LABEL", "CAPSTONE_LABELS"),
        ("CAPSTONE_XQ7", None),
    ],
)
def test_a_mistyped_variable_is_found_with_its_nearest(name: str, nearest: str | None) -> None:
    known = [variable_name(field) for field in Settings.model_fields]
    others = ["CAPSTONE_TEST_DATA", "CAPSTONE_UI_PORT", "CAPSTONE_LOG_BUCKET", "PATH"]

    assert unknown_variables([*known, *others, name]) == {name: nearest}


def test_every_wrong_setting_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_DEVICE", "gpu")
    monkeypatch.setenv("CAPSTONE_COMPUTE", "cloud")

    with pytest.raises(ConfigurationError, match=r"CAPSTONE_DEVICE.*CAPSTONE_COMPUTE"):
        read_settings()


def test_secrets_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", "mysql://user:hunter2@host/db")

    with pytest.raises(ConfigurationError, match="CAPSTONE_DATABASE_URL") as caught:
        read_settings()

    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", "postgresql+psycopg://user:hunter2@host/db")
    assert "hunter2" not in repr(read_settings())


def test_defaults_need_nothing() -> None:
    settings = read_settings()

    assert settings.labels == ("person", "face")
    assert settings.sample_fps == 5.0
    assert settings.timezone == "Asia/Seoul"
    with pytest.raises(ConfigurationError, match=r"CAPSTONE_DATABASE_URL.*POSTGRES_HOST"):
        settings.event_store_url()
    with pytest.raises(ConfigurationError, match="CAPSTONE_QUEUE_URL is not set"):
        settings.required("queue_url")


def test_the_event_store_from_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"HOST": "db", "USER": "me", "PASSWORD": "p@ss/w", "DB": "events"}.items():
        monkeypatch.setenv(f"POSTGRES_{name}", value)

    assert read_settings().event_store_url() == "postgresql+psycopg://me:p%40ss%2Fw@db:5432/events"


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_LABELS", " person , bicycle ")
    monkeypatch.setenv("CAPSTONE_REQUEST_MODELS", "yolo11n.pt,s3://models/")
    monkeypatch.setenv("CAPSTONE_SAMPLE_FPS", "")  # empty is unset

    settings = read_settings()

    assert settings.labels == ("person", "bicycle")
    assert settings.request_models == ("yolo11n.pt", "s3://models/")
    assert settings.sample_fps == 5.0


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (None, True),
        ("embedded", True),  # the configured one
        ("yolo11n.pt", True),
        ("yolov8x.pt", False),
        ("/etc/model.pt", False),
        ("s3://models/team/new.pt", True),
        ("s3://models-of-others/new.pt", False),
        ("s3://models/team/../../others/evil.pt", False),
        ("s3://models/./new.pt", False),
    ],
)
def test_who_starts_an_analysis_chooses_among_allowed_models(model: str | None, wanted: bool) -> None:
    settings = read_settings(request_models=("yolo11n.pt", "s3://models/"))
    assert (settings.unwanted_model(model) is None) == wanted


@pytest.mark.parametrize("models", ["s3://", "s3:///", "yolo11n.pt,s3://models/../others/"])
def test_a_prefix_that_allows_every_bucket_is_refused(models: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_REQUEST_MODELS", models)
    with pytest.raises(ConfigurationError, match=r"CAPSTONE_REQUEST_MODELS.*names a bucket"):
        read_settings()


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, variable_name(name)
