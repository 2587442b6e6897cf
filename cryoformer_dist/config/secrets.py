"""What looks like a secret, so that it is not written to files that others may read."""

import re
from collections.abc import Iterable, Iterator, Mapping

# Of a name, as parts between underscores.
_WORDS = {
    "secret", "secrets", "token", "tokens", "password", "passwd", "passphrase", "passcode", "pass", "pwd", "pw",
    "credential", "credentials", "creds", "key", "keys", "apikey", "accesskey", "secretkey", "privatekey", "auth",
    "authorization", "pgpass", "bearer", "jwt", "pat", "cookie", "sas", "signature",
}  # fmt: skip
_INSIDE = re.compile(r"secret|token|passw|passphrase|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
# A name that ends so says where or how, not what.
_HARMLESS = re.compile(r"_(FILE|PATH|DIR|MODE|PARALLELISM)$", re.IGNORECASE)
# Values that give themselves away: keys of clouds and services, JSON web tokens, URLs with a password, PEM.
_VALUE = re.compile(
    r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}"
    r"|\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bAIza[\w-]{30,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.|://[^/\s:@]+:[^/\s@]+@"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
_ASSIGNMENT = re.compile(r"(?<![\w-])-{0,2}([A-Za-z_][A-Za-z0-9_-]*)=(?![$\s]|\"\$)(?=\S)")


def find_secrets(variables: Mapping[str, str]) -> list[str]:
    """Names of the variables that look like secrets, or whose values do."""
    return [name for name, value in variables.items() if _names_secret(name) or _VALUE.search(value)]


def find_secrets_in_lines(lines: Iterable[str]) -> Iterator[str]:
    """What a shell line or an option sets that looks like a secret: its name, or the first word of a line without."""
    for line in lines:
        named = [name for name in _ASSIGNMENT.findall(line) if _names_secret(name.replace("-", "_"))]
        yield from named
        if not named and _VALUE.search(line):
            yield line.split()[0].split("=")[0]


def _names_secret(name: str) -> bool:
    if _HARMLESS.search(name):
        return False
    # As in apiToken.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
    return bool(_WORDS.intersection(words) or _INSIDE.search(name))
