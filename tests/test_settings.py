"""Configuration is refused early: the variable's name, the bad value, what is allowed."""

import pytest

from capstone_dagster.settings import ConfigurationError, Settings, read_settings, variable_name


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("CAPSTONE_SAMPLE_FPS", "-1", ["'-1'", "greater than or equal to 0"]),
        ("CAPSTONE_SAMPLE_FPS", "fast", ["'fast'", "number"]),
        ("CAPSTONE_DEVICE", "gpu", ["'gpu'", "cuda:0"]),
        ("CAPSTONE_COMPUTE", "cloud", ["'cloud'", "'local' or 'batch'"]),
        ("CAPSTONE_ENVIRONMENT", "staging", ["'staging'", "'prod'"]),
        ("CAPSTONE_LABELS", ",", ["at least one label"]),
        ("CAPSTONE_DERIVED_URL", "http://x", ["s3://bucket/prefix"]),
        ("CAPSTONE_TIMEZONE", "Seoul", ["'Seoul'", "Asia/Seoul"]),
        ("CAPSTONE_MODEL_SHA256", "abc", ["'abc'"]),
        ("CAPSTONE_CAMERA_PATTERN", "(", ["'('", "regular expression"]),
        ("CAPSTONE_CAMERA_PATTERN", "abc", ["one group"]),
        ("CAPSTONE_MESSAGES_PER_TICK", "0", ["'0'"]),
        ("POSTGRES_PORT", "x", ["'x'"]),
    ],
)
def test_a_wrong_setting_is_named(
    variable: str, value: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(ConfigurationError) as caught:
        read_settings()

    for part in [variable, *told]:
        assert part in str(caught.value)


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
    monkeypatch.setenv("CAPSTONE_SAMPLE_FPS", "")  # empty is unset

    settings = read_settings()

    assert settings.labels == ("person", "bicycle")
    assert settings.sample_fps == 5.0


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, variable_name(name)
