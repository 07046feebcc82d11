"""Certificates made for one test by the real openssl: an authority and who it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Authority:
    """A certificate authority of its own, in a folder of its own."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.pem"

    def sign(self, name: str, host: str = "127.0.0.1", days: int = 2) -> tuple[Path, Path]:
        """A certificate for `host` and its key: (certificate, key)."""
        key, request, made = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self.folder / f"{name}.ext"
        kind = "IP" if host.replace(".", "").isdigit() else "DNS"
        extensions.write_text(f"subjectAltName={kind}:{host}\n")
        _openssl("req", "-new", *_key(key), "-subj", f"/CN={name}", "-out", request)
        _openssl(
            *("x509", "-req", "-in", request, "-days", days, "-extfile", extensions),
            *("-CA", self.certificate, "-CAkey", self.folder / "ca.key", "-CAcreateserial"),
            *("-out", made),
        )
        return made, key


def authority(folder: Path, days: int = 2) -> Authority:
    """A new authority that nobody else knows."""
    folder.mkdir(parents=True)
    _openssl(
        *("req", "-x509", "-new", *_key(folder / "ca.key"), "-subj", f"/CN={folder.name} CA"),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-days", days, "-out", folder / "ca.pem"),
    )
    return Authority(folder)


def _key(path):
    # elliptic: RSA keys take seconds to make
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", path)


def _openssl(*arguments):
    command = ["/usr/bin/openssl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
