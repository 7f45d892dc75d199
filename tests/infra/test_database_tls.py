"""The containers' variables make both drivers verify the database's certificate and its name."""

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from capstone_dagster.local.postgres import EVENT_DATABASE, PostgresServer
from tests.infra.stacks import template

# libpq asks for encryption by one of these before it says anything else.
GSS, TLS = 80877104, 80877103


@dataclass(frozen=True)
class Authority:
    """Signs certificates; `file` is what those who trust it need."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    file: Path

    @staticmethod
    def new(folder: Path, name: str) -> "Authority":
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        unsigned = _unsigned(subject, subject, key).add_extension(x509.BasicConstraints(True, None), True)
        certificate = unsigned.sign(key, hashes.SHA256())
        file = folder / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return Authority(key, certificate, file)

    def server(self, host: str) -> ssl.SSLContext:
        """What a server of that name shows."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        signed = (
            _unsigned(subject, self.certificate.subject, key)
            .add_extension(names, False)
            .sign(self.key, hashes.SHA256())
        )
        chain = self.file.with_name(f"server-{host}-{self.file.name}")
        chain.write_bytes(
            signed.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


def _unsigned(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
    )


@contextlib.contextmanager
def encrypting(target_port: int, context: ssl.SSLContext) -> Iterator[int]:
    """A port that speaks PostgreSQL's TLS before a server without it."""

    def serve(plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError):
            while int.from_bytes(plain.recv(8)[4:], "big") == GSS:
                plain.sendall(b"N")
            plain.sendall(b"S")
            with (
                context.wrap_socket(plain, server_side=True) as near,
                socket.create_connection(("127.0.0.1", target_port)) as far,
            ):
                while True:
                    for end in [near] if near.pending() else select.select([near, far], [], [])[0]:
                        data = end.recv(65536)
                        if not data:
                            return
                        (far if end is near else near).sendall(data)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def ssl_variables(certificates: str) -> dict[str, str]:
    """As CloudFormation fills them in for that parameter."""
    [_, *containers] = template("application")["Resources"]["DaemonTask"]["Properties"][
        "ContainerDefinitions"
    ]
    given = {each["Name"]: each["Value"] for each in containers[0]["Environment"]}
    condition, verified, otherwise = given["PGSSLMODE"]["Fn::If"]
    assert condition == "VerifiesDatabase"
    assert given["PGSSLROOTCERT"] == {"Ref": "DatabaseCertificates"}
    return {"PGSSLMODE": verified if certificates else otherwise, "PGSSLROOTCERT": certificates}


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
@pytest.mark.parametrize(
    ("signed_by", "name", "trusted", "refusal"),
    [
        ("rds", "localhost", "rds", None),
        ("rds", "localhost", "", None),
        ("other", "localhost", "rds", "certificate verify failed"),
        ("rds", "attacker.example", "rds", "does not match host name"),
        ("rds", "localhost", "missing", "does not exist"),
    ],
)
def test_only_the_database_that_its_authority_has_signed_is_used(
    postgres: PostgresServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver: str,
    signed_by: str,
    name: str,
    trusted: str,
    refusal: str | None,
) -> None:
    authorities = {each: Authority.new(tmp_path, each) for each in ("rds", "other")}
    for variable, value in ssl_variables(trusted and str(tmp_path / f"{trusted}.pem")).items():
        monkeypatch.setenv(variable, value)
    url = sa.make_url(postgres.url(EVENT_DATABASE, driver))
    with encrypting(postgres.port, authorities[signed_by].server(name)) as port:
        engine = sa.create_engine(url.set(host="localhost", port=port))
        if refusal is None:
            with engine.connect() as connection:
                assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
        else:
            with pytest.raises(sa.exc.OperationalError, match=refusal):
                engine.connect()
        engine.dispose()
