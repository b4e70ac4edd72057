from __future__ import annotations

import dataclasses

import httpx
import pytest
from fastapi import FastAPI

from backend.app import SCOPES
from backend.auth.service import TokenService
from backend.deps import Context
from backend.tables import Token
from nanollama.api.client import Client
from nanollama.api.errors import Forbidden, InvalidRequest, Unauthorized
from nanollama.api.schemas import TokenCreate
from nanollama.api.scopes import allows
from tests.support.service import Caller, ManualClock

BODY = {"executor": "local", "host": "h", "user": "u", "run_root": "/root", "slots": 4, "version": "1"}


@pytest.fixture
def guarded(served: tuple[FastAPI, str], context: Context) -> Context:
    """A service that asks for tokens."""
    settings = context.settings.model_copy(update={"tokens": True})
    served[0].state.context = dataclasses.replace(context, settings=settings)
    return served[0].state.context


def make(context: Context, *scopes: str, days: float | None = None) -> str:
    with context.database.write() as session:
        wanted = TokenCreate(name="+".join(scopes), scopes=list(scopes), expires_in_days=days)
        return TokenService(session, context.clock()).create(wanted).secret


def as_bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def path_of(template: str) -> str:
    return template.replace("{name}", "stdout.log").replace("{", "").replace("}", "")


# -- every route -------------------------------------------------------------------------------------------------------


def test_every_route_but_health_wants_a_token(guarded: Context, served: tuple[FastAPI, str]) -> None:
    with httpx.Client(base_url=served[1], trust_env=False) as http:
        document = served[0].openapi()
        operations = [(method, path) for path, methods in document["paths"].items() for method in methods]
        assert len(operations) == len(SCOPES) >= 22
        pages = ("/docs", "/redoc", "/docs-files/swagger-ui.css", "/api/v1/openapi.json")
        plain = [("get", path) for path in (*pages, "/nothing", "/", "/metrics")]
        for method, path in operations + plain:
            for headers in ({}, as_bearer("n2n_wrong"), {"Authorization": "Basic dTpw"}, {"Authorization": "Bearer"}):
                reply = http.request(method, path_of(path), headers=headers)
                if path.startswith("/api/v1/health"):
                    assert reply.status_code == 200, path
                    continue
                assert reply.status_code == 401, (method, path)
                assert reply.json()["code"] == "unauthorized"
                assert reply.headers["WWW-Authenticate"] == "Bearer"


def test_every_route_wants_its_scope(guarded: Context, served: tuple[FastAPI, str]) -> None:
    secrets = {scope: make(guarded, scope) for scope in ("read", "submit", "worker:pool", "admin")}
    with httpx.Client(base_url=served[1], trust_env=False) as http:
        for (method, path), needed in SCOPES.items():
            for scope, secret in secrets.items():
                if path.startswith("/api/v1/health"):
                    continue
                headers = as_bearer(secret) | {"Content-Type": "application/json"}
                with http.stream(method, path_of(path), headers=headers, content="{}") as reply:
                    text = "" if reply.is_success else reply.read().decode()  # some that succeed never end
                refused = reply.status_code == 403 and "needs the scope" in text
                assert refused is not allows([scope], needed), (method, path, scope, needed, text)
                assert reply.status_code != 401


def test_what_each_scope_allows() -> None:
    for needed in ("read", "submit", "worker", "worker:a", "admin"):
        assert allows(["admin"], needed)
    assert allows(["submit"], "read")
    assert not allows(["read"], "submit")
    assert allows(["worker:a"], "worker")
    assert allows(["worker:a"], "worker:a")
    for needed in ("worker:b", "read", "submit", "admin"):
        assert not allows(["worker:a"], needed)


def test_without_tokens_nobody_is_asked_and_none_are_made(caller: Caller) -> None:
    assert caller.http.get("/runs", headers=as_bearer("whatever")).status_code == 200
    reply = caller.http.post("/tokens", json={"name": "x", "scopes": ["admin"]})
    assert (reply.status_code, reply.json()["code"]) == (409, "conflict")
    assert "--tokens" in reply.json()["detail"]
    assert caller.get("/tokens") == []


# -- the life of a token -----------------------------------------------------------------------------------------------


def test_a_token_is_made_used_and_revoked(guarded: Context, served: tuple[FastAPI, str], clock: ManualClock) -> None:
    with Client(served[1], token=make(guarded, "admin")) as admin:
        made = admin.create_token("notebook", ["read"], expires_in_days=2)
        assert made.secret.startswith("n2n_")
        assert len(made.secret) >= 40
        with Client(served[1], token=made.secret) as reader:
            assert reader.runs().items == []
            with pytest.raises(Forbidden, match=r"needs the scope 'submit', and the token 'notebook' has read"):
                reader.cancel("r0")
            listed = {token.name: token for token in admin.tokens()}
            assert listed["notebook"].last_used_at == clock.now
            assert "secret" not in listed["notebook"].model_dump()
            clock.advance(59)
            reader.runs()
            assert {t.name: t.last_used_at for t in admin.tokens()}["notebook"] != clock.now
            clock.advance(2)
            reader.runs()
            assert {t.name: t.last_used_at for t in admin.tokens()}["notebook"] == clock.now
            clock.advance(2 * 86400)
            with pytest.raises(Unauthorized, match="expired"):
                reader.runs()
        other = admin.create_token("other", ["submit"])
        revoked = admin.revoke_token(other.id)
        assert revoked.revoked_at == clock.now
        clock.advance(5)
        assert admin.revoke_token(other.id) == revoked
        with Client(served[1], token=other.secret) as late, pytest.raises(Unauthorized, match="revoked"):
            late.runs()
        with pytest.raises(InvalidRequest, match=r"'worker:' is not a scope; use read, submit"):
            admin.create_token("bad", ["worker:"])


def test_only_digests_are_stored(guarded: Context) -> None:
    secret = make(guarded, "read")
    with guarded.database.read() as session:
        (row,) = session.query(Token).all()
        values = " ".join(str(getattr(row, column.name)) for column in Token.__table__.columns)
    assert secret.removeprefix("n2n_") not in values


def test_the_client_takes_its_token_from_the_environment(
    guarded: Context, served: tuple[FastAPI, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("N2N_TOKEN", make(guarded, "read") + "\n")
    with Client(served[1]) as client:
        assert client.runs().items == []
    monkeypatch.setenv("N2N_TOKEN", "n2n_other")
    with Client(served[1]) as client, pytest.raises(Unauthorized, match="unknown"):
        client.runs()


def test_with_tokens_the_host_may_have_any_name(guarded: Context, http: httpx.Client) -> None:
    headers = {"Host": "lab.example", "Origin": "https://lab.example"} | as_bearer(make(guarded, "submit"))
    assert http.post("/runs/r0/cancel", headers=headers).status_code == 404


# -- workers -----------------------------------------------------------------------------------------------------------


def worker(guarded: Context, url: str, *scopes: str) -> Caller:
    headers = as_bearer(make(guarded, *scopes))
    return Caller(httpx.Client(base_url=f"{url}/api/v1", headers=headers, timeout=60, trust_env=False))


def test_a_worker_registers_in_its_own_pool_only(guarded: Context, served: tuple[FastAPI, str]) -> None:
    one, two = (worker(guarded, served[1], f"worker:{pool}") for pool in ("a", "b"))
    one.register("w", pool="a")
    assert one.http.put("/workers/v", json=BODY | {"name": "v", "pool": "b"}).status_code == 403
    assert two.http.put("/workers/w", json=BODY | {"name": "w", "pool": "b"}).status_code == 403
    assert two.http.post("/workers/w/sync", json={}).status_code == 403
    assert one.http.post("/workers/w/sync", json={}).status_code == 200
    assert one.http.post("/workers/absent/sync", json={}).status_code == 404
    one.http.close()
    two.http.close()


def test_a_worker_touches_only_what_it_leases(guarded: Context, served: tuple[FastAPI, str]) -> None:
    one, same_pool, two = (worker(guarded, served[1], f"worker:{pool}") for pool in ("a", "a", "b"))
    user = worker(guarded, served[1], "submit")
    user.submit()
    one.register("w", pool="a")
    same_pool.register("v", pool="a")
    two.register("u", pool="b")
    queued = user.get("/runs")["items"][0]["id"]
    waiting = user.get(f"/runs/{queued}/attempts")[0]["id"]
    early = {"attempt_id": waiting, "epoch": 0}
    assert one.report(early, "RUNNING").status_code == 403  # nobody leases it yet
    lease = one.claim("w")
    for stranger in (same_pool, two, user):
        assert stranger.report(lease, "RUNNING").status_code == 403
        assert stranger.put(lease, "stdout.log", b"x").status_code == 403
    assert one.report(lease, "RUNNING").status_code == 200
    assert one.put(lease, "stdout.log", b"x").status_code == 200
    assert one.report({"attempt_id": "a0", "epoch": 1}, "RUNNING").status_code == 404
    for caller in (one, same_pool, two, user):
        caller.http.close()
