"""What a person does first with the client that openapi-python-client makes of the description.

    PYTHONPATH=folder-of-the-client python .ci/clients/round_trip.py http://127.0.0.1:3001
"""

import io
import sys

from mmapd_client import Client
from mmapd_client.api.keys import delete_key, get_key, list_keys, put_key
from mmapd_client.api.leases import end_lease, keep_leases_alive, make_lease
from mmapd_client.api.transactions import transact
from mmapd_client.models import (
    Deleted,
    KeepAliveRequest,
    LeaseRequest,
    Problem,
    PutStep,
    TxnCompare,
    TxnRequest,
    TxnStepType0,
    Written,
)
from mmapd_client.types import File

client = Client(base_url=sys.argv[1])


def put(key: str, value: bytes, **more):
    return put_key.sync_detailed(key, client=client, body=File(io.BytesIO(value)), **more)


def same(found, wanted):
    assert found == wanted, f"{found!r} instead of {wanted!r}"


written = put("py/a", b"one\0").parsed
assert isinstance(written, Written), written
same((written.created, written.version), (True, 1))
found = get_key.sync_detailed("py/a", client=client)
same((found.content, found.headers["etag"]), (b"one\0", f'"{written.revision}"'))

refused = put("py/a", b"two", if_none_match="*")
same(refused.status_code, 412)
assert isinstance(refused.parsed, Problem), refused
same(
    (refused.parsed.code, refused.parsed.current_etag, refused.parsed.outcome.value),
    ("precondition-failed", found.headers["etag"], "not_applied"),
)
again = put("py/a", b"two", if_match=found.headers["etag"], idempotency_key="py-1")
same((again.parsed.version, again.headers.get("idempotency-replayed")), (2, None))
twice = put("py/a", b"two", if_match=found.headers["etag"], idempotency_key="py-1")
same((twice.parsed, twice.headers["idempotency-replayed"]), (again.parsed, "true"))

lease = make_lease.sync(client=client, body=LeaseRequest(ttl="60s"))
request = TxnRequest(
    if_=[TxnCompare(key="py/b", exists=False)],
    then=[TxnStepType0(put=PutStep(key="py/b", value="of a lease", lease=lease.id))],
)
done = transact.sync(client=client, body=request)
same((done.succeeded, done.results[0].put.lease), (True, lease.id))
same(transact.sync(client=client, body=request).succeeded, False)
alive = keep_leases_alive.sync(client=client, body=KeepAliveRequest(ids=[lease.id, 999_999]))
same([(one.id, one.ttl) for one in alive.leases], [(lease.id, "1m"), (999_999, None)])

page = list_keys.sync(client=client, prefix="py/", limit=1)
same((page.items[0].key, page.items[0].value, page.more), ("py/a", "two", True))
page = list_keys.sync(client=client, cursor=page.next_)
same(([item.key for item in page.items], page.more), (["py/b"], False))

same(end_lease.sync(lease.id, client=client).deleted, 1)
same(get_key.sync_detailed("py/b", client=client).status_code, 404)
gone = delete_key.sync("py/a", client=client, prev=True)
assert isinstance(gone, Deleted), gone
same((gone.deleted, gone.prev.value), (1, "two"))
print("the Python client put, read, refused, replayed, leased, transacted, listed and deleted")
