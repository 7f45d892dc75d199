"""No secret reaches the logs: what has the shape of one, and what is known to be one here."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.logs.json_lines import json_line
from capstone_dagster.redaction import HIDDEN, Redaction, known_secrets
from capstone_dagster.settings import read_settings

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
PRESIGNED = (
    "https://capstone-raw.s3.ap-northeast-2.amazonaws.com/gate/a.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256"
    "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20260122%2Fap-northeast-2%2Fs3%2Faws4_request"
    "&X-Amz-Date=20260122T142315Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host"
    f"&X-Amz-Security-Token=FwoGZXIvYXdzEBYaD{SECRET}&X-Amz-Signature=fe5f80f77d5fa3beca038a248ff027d0445342fe"
)


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"postgresql+psycopg://capstone:{SECRET}@db:5432/capstone does not answer", SECRET),
        (f"postgresql://capstone:p@{SECRET}@db/capstone", SECRET),
        (f"redis://:{SECRET}@cache", SECRET),
        (PRESIGNED, SECRET),
        (PRESIGNED, "fe5f80f77d5fa3beca038a248ff027d0445342fe"),
        (PRESIGNED, "AKIAIOSFODNN7EXAMPLE"),
        (f"fetching {quote(PRESIGNED, safe='')} failed", "fe5f80f77d5fa3beca038a248ff027d0445342fe"),
        (
            "a.mp4?AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE&Signature=vjbyPxybdZaNmGa%2ByT272YEAiv4%3D&Expires=1",
            "vjby",
        ),
        ("the key ASIAIOSFODNN7EXAMPLE is not known", "ASIAIOSFODNN7EXAMPLE"),
        (f"Authorization: AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature={SECRET}", SECRET),
        (f"{{'Authorization': 'Bearer {SECRET}', 'Accept': '*/*'}}", SECRET),
        (f"{{'Authorization': b'Basic {SECRET}'}}", SECRET),
        (f"got: bearer {SECRET}", SECRET),
        (f"aws_secret_access_key = {SECRET}", SECRET),
        (f'{{"SecretAccessKey": "{SECRET}", "Expiration": "soon"}}', SECRET),
        (f"AWS_SESSION_TOKEN={SECRET}", SECRET),
        (f"X-Amz-Security-Token: {SECRET}", SECRET),
        (f"host=db user=capstone password={SECRET} dbname=capstone", SECRET),
        (f"PGPASSWORD='{SECRET} with a space' psql", SECRET),
        (f"postgresql://db/capstone?user=me&password={SECRET}", SECRET),
        (f"https://hooks.example.org/in?token={SECRET}&to=ops", SECRET),
        (f"https://account.example.org/a.mp4?sv=1&sig={SECRET}", SECRET),
    ],
)
def test_what_has_the_shape_of_a_secret_is_not_in_the_logs(text: str, secret: str) -> None:
    assert secret in text

    assert secret not in Redaction().text(text)


@pytest.mark.parametrize(
    "text",
    [
        "Fetched 1,234 bytes of s3://capstone-raw/gate/a.mp4 in 0.2 s.",
        "[1/5] Model loading: person_face on cuda:0 (torch), 1.2 s",
        'connection to server at "10.0.0.7", port 5432 failed: FATAL: password authentication failed',
        "http://127.0.0.1:3000/runs/1b4e28ba-2fa1-11d2-883f-0016d3cca427 is Dagster's page",
        "the next token is expected, found a secret garden",
        "arn:aws:secretsmanager:ap-northeast-2:123456789012:secret:capstone-db",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Redaction().text(text) == text


letters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
passwords = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)


@given(before=letters, secret=passwords, after=letters)
def test_a_known_secret_is_in_no_line_of_the_logs(before: str, secret: str, after: str) -> None:
    redaction = Redaction({secret})
    fields = {
        "message": before + secret + after,
        "url": f"postgresql://u:{quote(secret, safe='')}@db/x",
        "nested": {"list": [secret, {"deep": before + secret}], secret: 1},
        "exception": ValueError(secret),
    }

    line = json_line(fields, redaction)

    shown = json.loads(line)
    for text in (shown["message"], shown["url"], shown["exception"], *shown["nested"]["list"][:1]):
        assert secret not in text
        assert quote(secret, safe="") not in text
    assert secret not in json.dumps(list(shown["nested"]), ensure_ascii=False)
    assert secret not in shown["nested"]["list"][1]["deep"]


@given(user=st.from_regex(r"[a-z]{1,8}", fullmatch=True), password=passwords, rest=letters)
def test_a_url_s_password_is_in_no_line_of_the_logs(user: str, password: str, rest: str) -> None:
    text = f"{rest} postgresql://{user}:{quote(password, safe='')}@db:5432/capstone {rest}"

    assert f":{quote(password, safe='')}@" not in Redaction().text(text)


def test_settings_tell_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv(
        "DAGSTER_POSTGRES_URL", "postgresql+psycopg2://dagster:d%40gster-s-password@db/dagster"
    )
    settings = read_settings(
        database_url="postgresql+psycopg://capstone:event-store-s-password@db/capstone",
        postgres_password="password-of-the-parts",
    )

    found = known_secrets(settings)

    assert found >= {
        SECRET,
        "d@gster-s-password",
        "event-store-s-password",
        "password-of-the-parts",
    }
    hidden = Redaction(found).text("d@gster-s-password, event-store-s-password and password-of-the-parts")
    assert hidden == f"{HIDDEN}, {HIDDEN} and {HIDDEN}"


def test_a_password_that_is_a_name_in_use_does_not_hide_the_name() -> None:
    settings = read_settings(postgres_password="capstone")

    text = Redaction(known_secrets(settings)).text(
        "capstone.intake: postgresql://capstone:capstone@db/capstone"
    )

    assert text == f"capstone.intake: postgresql://capstone:{HIDDEN}@db/capstone"


def test_fields_named_like_secrets_are_not_in_the_logs() -> None:
    fields = {
        "message": "m",
        "password": "short",
        "db_password": ["x"],
        "headers": {"Authorization": "y", "token": 7},
        "tokens": 3,
    }

    shown = json.loads(json_line(fields, Redaction()))

    assert shown["password"] == shown["db_password"] == HIDDEN
    assert shown["headers"] == {"Authorization": HIDDEN, "token": HIDDEN}
    assert shown["tokens"] == 3
