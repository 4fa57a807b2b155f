// What a person does first with the types that openapi-typescript makes of the description.
//
//   node round_trip.js http://127.0.0.1:3001
import createClient from "openapi-fetch";
import type { components, paths } from "./mmapd.js";

type Problem = components["schemas"]["Problem"];
const baseUrl = process.argv[2];
const client = createClient<paths>({ baseUrl });

function same(found: unknown, wanted: unknown): void {
  const [have, want] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (have !== want) throw new Error(`${have} instead of ${want}`);
}

// Values are bytes, which go as they are.
const bytes = { bodySerializer: (body: unknown) => body as BodyInit };
const path = { key: "ts/a" };

const put = await client.PUT("/v1/keys/{key}", { params: { path }, body: "one", ...bytes });
same([put.response.status, put.data?.created, put.data?.version], [201, true, 1]);
const got = await client.GET("/v1/keys/{key}", { params: { path }, parseAs: "text" });
same(got.data, "one");
const etag = got.response.headers.get("etag") ?? "";
same(etag, `"${put.data?.revision}"`);

const refused = await client.PUT("/v1/keys/{key}", {
  params: { path, header: { "If-None-Match": "*" } },
  body: "two",
  ...bytes,
});
same(refused.response.status, 412);
const problem: Problem | undefined = refused.error;
same(
  [problem?.code, problem?.current_etag, problem?.outcome],
  ["precondition-failed", etag, "not_applied"],
);

const lease = await client.POST("/v1/leases", { body: { ttl: "60s" } });
const id = lease.data?.id ?? 0;
const body = {
  if: [{ key: "ts/b", exists: false }],
  then: [{ put: { key: "ts/b", value: "of a lease", lease: id } }],
};
const done = await client.POST("/v1/txn", { body });
const first = done.data?.results[0];
same([done.data?.succeeded, first && "put" in first && first.put.lease], [true, id]);
same((await client.POST("/v1/txn", { body })).data?.succeeded, false);
const alive = await client.POST("/v1/leases/keepalive", { body: { ids: [id, 999_999] } });
same(alive.data?.leases, [{ id, ttl: "1m" }, { id: 999_999, ttl: null }]);

const page = await client.GET("/v1/keys", { params: { query: { prefix: "ts/" } } });
// A page, and not one of the lines that `Accept: application/x-ndjson` asks for.
const items = page.data && "items" in page.data ? page.data.items : [];
same(items.map((item) => [item.key, item.value]), [["ts/a", "one"], ["ts/b", "of a lease"]]);

const ended = await client.DELETE("/v1/leases/{id}", { params: { path: { id } } });
same(ended.data?.deleted, 1);
const gone = await client.DELETE("/v1/keys/{key}", { params: { path, query: { prev: true } } });
same([gone.data?.deleted, gone.data?.prev?.value], [1, "one"]);
same((await client.GET("/v1/keys/{key}", { params: { path } })).response.status, 404);
console.log("the TypeScript client put, read, refused, leased, transacted, listed and deleted");
