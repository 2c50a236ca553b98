"""Who may do what at the registry: htpasswd, rules, tokens of our own and of others, TLS; and what is refused."""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dray.base.errors import InvalidParameter
from dray.registry.server import authentication, tokens
from dray.registry.server.__main__ import parse
from dray.registry.server.access import Wish
from dray.registry.server.authentication import Rules, Users, read_htpasswd, read_rules
from dray.registry.server.errors import Refusal
from support.registries import Authority, DrayRegistry, write_htpasswd

USERS = {"alice": "secret of alice", "bob": "x" * 80}
ACCESS = """
[[rule]]
users = ["alice"]
repositories = ["team/*"]
actions = ["pull", "push"]
[[rule]]
users = ["*"]
repositories = ["team/*"]
actions = ["pull"]
[[rule]]
users = ["@anonymous"]
repositories = ["public"]
actions = ["pull"]
"""
Make = Callable[..., DrayRegistry]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[DrayRegistry] = []

    def start(*options: str, **more: Any) -> DrayRegistry:
        made.append(DrayRegistry(tmp_path / f"registry{len(made)}", options=options, **more))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def alice() -> dict[str, str]:
    return basic("alice", USERS["alice"])


def test_htpasswd_and_rules(make: Make, tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(ACCESS)
    registry = make(f"--access={tmp_path / 'access.toml'}", htpasswd=USERS)
    status, headers, body = registry.request("GET", "/v2/")
    assert (status, headers["www-authenticate"]) == (401, 'Basic realm="dray-registry"')
    assert json.loads(body)["errors"][0]["code"] == "UNAUTHORIZED"
    for wrong in (
        basic("alice", "wrong"),
        basic("nobody", "x"),
        {"Authorization": "Basic ???"},
        basic("bob", "x" * 71),
    ):
        assert registry.request("GET", "/v2/", headers=wrong)[0] == 401
    assert registry.request("GET", "/v2/", headers=alice())[0] == 200
    assert registry.request("GET", "/v2/", headers=basic("bob", USERS["bob"]))[0] == 200
    push = ("POST", "/v2/team/app/blobs/uploads/", b"")
    assert registry.request(*push, alice())[0] == 202
    status, _, body = registry.request(*push, basic("bob", USERS["bob"]))
    assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")
    assert registry.request("GET", "/v2/team/app/tags/list", headers=basic("bob", USERS["bob"]))[0] == 404
    assert registry.request("DELETE", "/v2/team/app/manifests/x", headers=alice())[0] == 403
    assert registry.request("GET", "/v2/public/tags/list")[0] == 404  # anonymous, and not there
    assert registry.request("GET", "/v2/team/app/tags/list")[0] == 401
    assert " - alice [" in registry.log.read_text()
    assert "secret" not in registry.log.read_text()


def test_users_may_change_while_it_serves(make: Make) -> None:
    registry = make(htpasswd=USERS)
    assert registry.request("GET", "/v2/", headers=alice())[0] == 200
    write_htpasswd(registry.folder / "htpasswd", {"carol": "new"})
    assert registry.request("GET", "/v2/", headers=alice())[0] == 401
    assert registry.request("GET", "/v2/", headers=basic("carol", "new"))[0] == 200


async def test_passwords_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_htpasswd(tmp_path / "users", USERS)
    users, checked = Users(str(tmp_path / "users")), []
    real = authentication._matches

    def counting(secret: bytes, hashed: bytes) -> bool:
        checked.append(secret)
        return real(secret, hashed)

    monkeypatch.setattr(authentication, "_matches", counting)
    for _ in range(3):
        assert await users.check("alice", USERS["alice"])
    assert len(checked) == 1
    for _ in range(2):
        assert not await users.check("alice", "wrong")
    assert not await users.check("nobody", "wrong")  # costs a check as well
    assert len(checked) == 4
    users.close()


async def test_many_guesses_are_turned_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_htpasswd(tmp_path / "users", USERS)
    users = Users(str(tmp_path / "users"))
    monkeypatch.setattr(users, "_waiting", authentication._WAITING)
    with pytest.raises(Refusal, match="too many passwords") as refused:
        await users.check("alice", "guess")
    assert (refused.value.status, refused.value.code) == (429, "TOOMANYREQUESTS")
    users.close()


@pytest.mark.parametrize("line", ["alice", "alice:plain", "alice:$apr1$x$y", ":$2y$05$x"])
def test_htpasswd_lines_that_are_none(tmp_path: Path, line: str) -> None:
    (tmp_path / "users").write_text(f"# a comment\n\n{line}\n")
    with pytest.raises(InvalidParameter, match="line 3: not a user with a bcrypt hash"):
        read_htpasswd(str(tmp_path / "users"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("rules = 1", "entries and nothing else"),
        ("[[rule]]\nusers = []", '"users", a list of strings|"actions"'),
        ('[[rule]]\nusers = ["a"]\nrepositories = ["a"]\nactions = ["write"]', "unknown action 'write'"),
        ('[[rule]]\nuser = ["a"]', r"not \['user'\]"),
        ("[[rule", "access.toml: "),
    ],
)
def test_access_files_that_are_wrong(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "access.toml").write_text(text)
    with pytest.raises(InvalidParameter, match=reason):
        read_rules(str(tmp_path / "access.toml"))


@pytest.mark.parametrize(
    ("user", "action", "repository", "granted"),
    [("alice", "push", "team/a", True), ("alice", "push", "team/a/b", True), ("alice", "push", "teams", False),
     ("alice", "delete", "team/a", False), ("bob", "pull", "team/a", True), ("bob", "push", "team/a", False),
     ("bob", "pull", "public", True), ("", "pull", "public", True), ("", "pull", "team/a", False),
     ("@anonymous", "pull", "team/a", True), ("bob", "list", "team/a", True), ("", "pull", "", True)],
)  # fmt: skip
def test_rules(tmp_path: Path, user: str, action: str, repository: str, granted: bool) -> None:
    (tmp_path / "access.toml").write_text(ACCESS)
    assert read_rules(str(tmp_path / "access.toml")).grants(user, Wish(action, repository)) is granted


# --- tokens


def challenge(headers: dict[str, str]) -> dict[str, str]:
    assert headers["www-authenticate"].startswith("Bearer ")
    return dict(re.findall(r'(\w+)="([^"]*)"', headers["www-authenticate"]))


def token(registry: DrayRegistry, scope: str, headers: dict[str, str], **more: str) -> tuple[int, dict[str, Any]]:
    query = urllib.parse.urlencode({"service": "dray-registry", "scope": scope, **more})
    status, _, body = registry.request("GET", f"/token?{query}", headers=headers)
    return status, json.loads(body)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_our_own_tokens(make: Make, tmp_path: Path) -> None:
    (tmp_path / "access.toml").write_text(ACCESS)
    registry = make("--auth=token", f"--access={tmp_path / 'access.toml'}", htpasswd=USERS)
    push = ("POST", "/v2/team/app/blobs/uploads/", b"")
    status, headers, _ = registry.request(*push)
    asked = challenge(headers)
    assert status == 401
    assert asked == {
        "realm": f"{registry.url}/token", "service": "dray-registry", "scope": "repository:team/app:pull,push",
    }  # fmt: skip
    status, document = token(registry, asked["scope"], alice())
    assert (status, document["token"], document["expires_in"]) == (200, document["access_token"], 300)
    assert registry.request(*push, bearer(document["token"]))[0] == 202
    assert registry.request("POST", "/v2/team/other/blobs/uploads/", b"", bearer(document["token"]))[0] == 401
    bobs = token(registry, asked["scope"], basic("bob", USERS["bob"]))[1]["token"]
    status, headers, _ = registry.request(*push, bearer(bobs))
    assert (status, challenge(headers)["error"]) == (401, "insufficient_scope")
    assert token(registry, asked["scope"], basic("alice", "wrong"))[0] == 401
    anonymous = token(registry, "repository:public:pull,push", {})[1]["token"]
    assert registry.request("GET", "/v2/public/tags/list", headers=bearer(anonymous))[0] == 404
    assert registry.request("POST", "/v2/public/blobs/uploads/", b"", bearer(anonymous))[0] == 401
    # after a restart the key is the same
    registry.stop()
    registry.start()
    assert registry.request(*push, bearer(document["token"]))[0] == 202


def test_refresh_tokens(make: Make) -> None:
    registry = make("--auth=token", htpasswd=USERS)
    _, document = token(registry, "", alice(), offline_token="true")
    refresh = document["refresh_token"]
    assert registry.request("GET", "/v2/", headers=bearer(refresh))[0] == 401  # good for the endpoint alone

    def exchange(text: str) -> int:
        form = {"grant_type": "refresh_token", "refresh_token": text, "scope": "repository:a:pull", "service": "x"}
        return registry.request("POST", "/token", urllib.parse.urlencode(form).encode())[0]

    assert exchange(refresh) == 200
    assert exchange(document["token"]) == 401
    write_htpasswd(registry.folder / "htpasswd", {"alice": "another"})
    assert exchange(refresh) == 401  # the password was changed


def test_tokens_that_are_refused() -> None:
    key, now = b"k" * 32, time.time()
    good = {"iss": "i", "aud": "a", "sub": "u", "exp": now + 60}
    assert tokens.verify(tokens.sign(good, key), key, issuer="i", audience="a") == good
    for wrong in ({"exp": now - 1}, {"iss": "x"}, {"aud": "x"}, {"nbf": now + 3600}):
        assert tokens.verify(tokens.sign({**good, **wrong}, key), key, issuer="i", audience="a") is None
    signed = tokens.sign(good, key)
    head, body, signature = signed.split(".")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    for text in (
        "",
        "a.b",
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        f"{head}.{body}.",
        signed[:-2],
        f"{signed}.x",
    ):
        assert tokens.verify(text, key, issuer="i", audience="a") is None, text
    assert tokens.verify(signed, b"other" * 8, issuer="i", audience="a") is None


@pytest.mark.parametrize("kind", ["certificate", "public key"])
def test_an_external_issuer(make: Make, tmp_path: Path, kind: str) -> None:
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if kind == "certificate":
        authority = Authority(tmp_path / "issuer")
        private = serialization.load_pem_private_key(authority.key.read_bytes(), None)
        public = authority.certificate
    else:
        private = ec.generate_private_key(ec.SECP256R1())
        public = tmp_path / "issuer.pem"
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    registry = make(
        *("--auth=token", "--token-realm=https://tokens.example/t", "--token-issuer=them"),
        *("--token-service=us", f"--token-key={public}"),
    )
    status, headers, _ = registry.request("GET", "/v2/a/tags/list")
    assert (status, challenge(headers)["realm"]) == (401, "https://tokens.example/t")
    claims = {"iss": "them", "aud": "us", "sub": "u", "exp": time.time() + 60,
              "access": [{"type": "repository", "name": "a", "actions": ["pull"]}]}  # fmt: skip

    def ask(path: str, **changes: Any) -> int:
        signed = jwt.encode({**claims, **changes}, private, algorithm="ES256")  # type: ignore[arg-type]
        return registry.request("GET", path, headers=bearer(signed))[0]

    assert ask("/v2/a/tags/list") == 404
    assert ask("/v2/b/tags/list") == 401
    for changes in ({"exp": time.time() - 60}, {"iss": "x"}, {"aud": "x"}):
        assert ask("/v2/a/tags/list", **changes) == 401
    # The public key used as a secret: the token may not choose its algorithm.
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    import hmac

    signature = hmac.digest(public.read_bytes(), f"{head}.{body}".encode(), "sha256")
    forged = f"{head}.{body}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    assert registry.request("GET", "/v2/a/tags/list", headers=bearer(forged))[0] == 401


# --- TLS, options


def test_tls_and_client_certificates(make: Make, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    registry = make(tls=authority)
    assert registry.request("GET", "/v2/")[0] == 200
    data = bytes(range(256)) * 10000
    import hashlib

    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert registry.request("POST", f"/v2/a/blobs/uploads/?digest={digest}", data)[0] == 201
    assert registry.request("GET", f"/v2/a/blobs/{digest}")[2] == data
    strict = make(tls=authority, client_ca=authority)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        strict.request("GET", "/v2/")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--tls-cert=c"], "--tls-cert needs --tls-key"),
        (["--tls-client-ca=c"], "--tls-client-ca needs --tls-cert"),
        (["--auth=htpasswd"], "--auth htpasswd needs --htpasswd"),
        (["--auth=token"], "--auth token needs --htpasswd"),
        (["--auth=ldap"], 'unknown kind of authentication "ldap"'),
        (["--htpasswd=f"], "--htpasswd needs --auth"),
        (["--access=f"], "--access needs --auth"),
        (["--token-realm=r"], "--token-realm needs --token-key"),
        (["--listen=5000"], 'invalid address "5000"'),
        (["--listen=h:99999"], "invalid address"),
        (["--gc-interval=soon"], 'invalid duration "soon"'),
        (["--proxy=registry.example"], 'invalid address "registry.example"'),
        (["--s3-prefix=p"], "--s3-prefix needs --s3-bucket"),
        (["--proxy-username=u"], "--proxy-username needs --proxy-password-file"),
    ],
)
def test_options_that_do_not_fit(words: list[str], reason: str) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(reason)):
        parse(["serve", *words])


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"dray registry: cannot use \S*/nosuch.pem: No such file"):
        DrayRegistry(tmp_path, options=[f"--tls-cert={tmp_path}/nosuch.pem", f"--tls-key={tmp_path}/nosuch.pem"])


def test_everybody_may_everything_without_rules() -> None:
    assert Rules().grants("alice", Wish("delete", "any"))
    assert not Rules().grants("", Wish("pull", "any"))
