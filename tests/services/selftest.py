"""Proves that the REST catalog's switches do what catalog.sh says. Standard library only.

usage: selftest.py CATALOG_SH DIR PORT S3_PORT
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid

SCRIPT, DIR, PORT, S3 = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
URL = f"http://127.0.0.1:{PORT}"
STORE = [
    f"s3.endpoint=http://127.0.0.1:{S3}",
    "s3.access-key-id=testkey",
    "s3.secret-access-key=testsecret",
    "s3.path-style-access=true",
]
SCHEMA = {"type": "struct", "fields": [{"id": 1, "name": "n", "type": "long", "required": False}]}


def sh(*args):
    return subprocess.run([SCRIPT, *args], check=True, capture_output=True, text=True).stdout


def call(method, path, body=None, token=None, form=None, timeout=10, **headers):
    """Status and JSON of an answer; status 0 when the connection was closed without one, -1 on timeout."""
    headers = {k.replace("_", "-"): v for k, v in headers.items()}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    data = None
    if body is not None:
        data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
    if form is not None:
        data = urllib.parse.urlencode(form).encode()
    request = urllib.request.Request(URL + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as r:
            return r.status, json.loads(r.read() or b"{}")
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read() or b"{}")
    except TimeoutError:
        return -1, {}
    except (ConnectionError, urllib.error.URLError, OSError) as e:
        return (-1 if "timed out" in str(e) else 0), {}


def check(what, got, want):
    assert got == want, f"{what}: got {got}, want {want}"
    print(f"  ok  {what}")


def fault(query):
    sh("fault", DIR, query)


def value(token=None, table="/v1/namespaces/ns/tables/t"):
    return call("GET", table, token=token)[1]["metadata"]["properties"].get("n")


def commit(n, **more):
    """A commit that always lands, and shows in property n."""
    body = {"requirements": [], "updates": [{"action": "set-properties", "updates": {"n": str(n)}}]}
    return call("POST", "/v1/namespaces/ns/tables/t", body, **more)[0]


def add_column(name, **more):
    """A commit which can land once only: the schema must still be the expected one."""
    current = call("GET", "/v1/namespaces/ns/tables/t")[1]["metadata"]
    last = current["last-column-id"] + 1
    fields = current["schemas"][-1]["fields"] + [{"id": last, "name": name, "type": "long", "required": False}]
    body = {
        "requirements": [{"type": "assert-current-schema-id", "current-schema-id": current["current-schema-id"]}],
        "updates": [
            {"action": "add-schema", "schema": {"type": "struct", "fields": fields}, "last-column-id": last},
            {"action": "set-current-schema", "schema-id": -1},
        ],
    }
    return lambda: call("POST", "/v1/namespaces/ns/tables/t", body, **more)


def until(what, condition):
    end = time.time() + 15
    while not condition():
        assert time.time() < end, what
        time.sleep(0.05)
    print(f"  ok  {what}")


def plain_and_faults():
    print("no authentication, faults")
    sh("start", DIR, str(PORT), "s3://warehouse/w", *STORE)
    check("config has no idempotency", call("GET", "/v1/config")[1].get("idempotency-key-lifetime"), None)
    check("namespace", call("POST", "/v1/namespaces", {"namespace": ["ns"], "properties": {}})[0], 200)
    check("table", call("POST", "/v1/namespaces/ns/tables", {"name": "t", "schema": SCHEMA})[0], 200)
    check("commit", (commit(1), value()), (200, "1"))
    fault("mode=before&status=500")
    check("before: status, nothing done, then clear", (commit(2), value(), commit(3), value()), (500, "1", 200, "3"))
    fault("mode=after&status=503")
    check("after: status, yet done", (commit(4), value()), (503, "4"))
    fault("mode=drop")
    check("drop: no answer, yet done", (commit(5), value()), (0, "5"))
    fault("mode=drop-before")
    check("drop-before: no answer, nothing done", (commit(6), value()), (0, "5"))
    fault("mode=conflict")
    check("conflict", (commit(7), value()), (409, "5"))
    fault("mode=auth&count=2")
    check("auth, twice", (commit(8), commit(8), commit(8)), (401, 401, 200))
    fault("mode=before&skip=1&count=1")
    check("skip lets the first pass", (commit(9), commit(10), value()), (200, 503, "9"))
    fault("mode=delay&ms=1500")
    check("delay: the client gives up first", (commit(11, timeout=0.3), value()), (-1, "9"))
    until("delay: and the commit lands later", lambda: value() == "11")
    fault("mode=late&ms=1500")
    check("late: done before the answer", (commit(12, timeout=0.3), value()), (-1, "12"))
    fault("mode=before&method=GET&path=/v1/config$")
    check("another route", (call("GET", "/v1/config")[0], commit(13)), (503, 200))
    check("hits are counted", json.loads(sh("fault", DIR)), {"mode": "before", "left": 0, "hits": 1})
    refused = subprocess.run([SCRIPT, "fault", DIR, "mode=nonsense"], capture_output=True, text=True)
    check("an unknown mode is refused", (refused.returncode != 0, "unknown mode" in refused.stdout), (True, True))
    key = {"Idempotency_Key": str(uuid.uuid4())}
    request = add_column("a", **key)
    check("not offered, so a repeated key is an ordinary request", (request()[0], request()[0]), (200, 409))
    stats = json.loads(sh("stats", DIR))
    check("stats", stats["GET /v1/config"] >= 2 and stats["POST /v1/namespaces/N/tables/T"] > 10 and stats["idempotency key"], 2)
    sh("stats", DIR, "reset")
    check("stats reset", json.loads(sh("stats", DIR)), {})
    sh("kill", DIR)


def idempotency():
    print("idempotency keys")
    sh("start", DIR, str(PORT), "s3://warehouse/w", "--idempotency", "PT30M", *STORE)
    check("state survived kill -9", value(), "13")
    check("offered", call("GET", "/v1/config")[1]["idempotency-key-lifetime"], "PT30M")
    request = add_column("b", Idempotency_Key=str(uuid.uuid4()))
    fault("mode=drop")
    first, second, third = request(), request(), request()
    check("lost reply, then the first answer again", (first[0], second[0], third), (0, 200, second))
    sh("stop", DIR)


def authentication():
    print("bearer tokens, OAuth2, prefix, vended credentials")
    options = ["--token", "sesame", "--credential", "me:secret", "--token-seconds", "2", "--vend", "--prefix", "ws"]
    sh("start", DIR, str(PORT), "s3://warehouse/w", *options, *STORE)
    check("no token", call("GET", "/v1/config")[0], 401)
    check("wrong token", call("GET", "/v1/config", token="x")[0], 401)
    check("right token", call("GET", "/v1/config", token="sesame")[1]["overrides"]["prefix"], "ws")
    grant = {"grant_type": "client_credentials", "client_id": "me", "client_secret": "secret", "scope": "catalog"}
    check("wrong secret", call("POST", "/v1/oauth/tokens", form={**grant, "client_secret": "no"})[0], 401)
    issued = call("POST", "/v1/oauth/tokens", form=grant)[1]
    check("token issued", (issued["token_type"], issued["expires_in"]), ("bearer", 2))
    token = issued["access_token"]
    table = "/v1/ws/namespaces/ns/tables/t"
    check("works under the prefix", call("GET", table, token=token)[0], 200)
    check("not without", call("GET", "/v1/namespaces/ns/tables/t", token=token)[0], 404)
    until("and expires", lambda: call("GET", table, token=token)[0] == 401)
    token = call("POST", "/v1/oauth/tokens", form=grant)[1]["access_token"]
    sh("revoke", DIR)
    check("revoked", call("GET", table, token=token)[0], 401)
    loaded = call("GET", table, token="sesame")[1]
    check("no credentials unless asked for", ("s3.secret-access-key" in loaded.get("config", {}), "storage-credentials" in loaded), (False, False))
    loaded = call("GET", table, token="sesame", X_Iceberg_Access_Delegation="vended-credentials")[1]
    check("credentials in config", loaded["config"]["s3.secret-access-key"], "testsecret")
    check("and as storage-credentials", loaded["storage-credentials"][0]["config"]["s3.endpoint"], f"http://127.0.0.1:{S3}")
    sh("stop", DIR)


os.makedirs(DIR, exist_ok=True)
try:
    plain_and_faults()
    idempotency()
    authentication()
finally:
    sh("stop", DIR)
