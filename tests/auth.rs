//! Who may do what: tokens, roles and the secret of nodes, from outside.

#[path = "support/http.rs"]
mod http;
#[path = "support/process.rs"]
mod process;

use std::fs;
use std::path::Path;

use http::{Connection, Reply, Server};
use mmapd::auth::{Access, Directory, Hash};
use mmapd::config::Config;
use process::{Cluster, Node, wait};
use rustix::process::Signal;

const SECRET: &str = "a-secret-of-nodes-with-enough-characters";

/// The hash that a file of tokens has.
fn sha256(token: &str) -> String {
    Hash::of(token.as_bytes()).to_string()
}

fn tokens() -> String {
    let token = |name: &str, role: &str, more: &str| {
        let hash = sha256(&format!("{name}-token"));
        format!("[[tokens]]\nname = \"{name}\"\nsha256 = \"{hash}\"\nroles = [{role:?}]\n{more}\n")
    };
    let role =
        |name: &str, rights: &str| format!("[[roles]]\nname = {name:?}\nrights = [{rights}]\n");
    [
        "anonymous = [\"public\"]\n".to_owned(),
        role("public", "{ verbs = [\"read\"], prefix = \"public/\" }"),
        role("app", "{ verbs = [\"read\", \"write\"], prefix = \"app/\" }"),
        role("reader", "{ verbs = [\"read\", \"observe\"] }"),
        role("nobody", ""),
        role("worker", "{ verbs = [\"lease\"] }, { verbs = [\"lock\"], prefix = \"jobs/\" }"),
        role(
            "admin",
            "{ verbs = [\"read\", \"write\", \"lease\", \"lock\", \"observe\", \"operate\"] }",
        ),
        token("app", "app", ""),
        token("reader", "reader", ""),
        token("worker", "worker", ""),
        token("admin", "admin", ""),
        token("nobody", "nobody", ""),
        token("over", "admin", "expires = 2026-01-01T00:00:00Z"),
    ]
    .concat()
}

/// Those who know these tokens and this secret.
fn access(tokens: &str, secret: &str) -> Access {
    let directory = Directory::parse(tokens).expect("it is right");
    Access::new(directory.with_secrets(vec![secret.into()]))
}

fn with_access(access: Access) -> Server {
    Server::start(Config { access, ..Config::default() })
}

fn guarded() -> Server {
    with_access(access(&tokens(), SECRET))
}

fn ask(server: &Server, token: &str, method: &str, target: &str, body: &str) -> Reply {
    let mut connection = Connection::to(server.address);
    let authorization =
        if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{authorization}");
    let length = format!("Content-Length: {}\r\n\r\n{body}", body.len());
    connection.send(format!("{head}{length}").as_bytes());
    connection.reply(method == "HEAD").expect("an answer")
}

/// Sends a head that announces a body, and nothing of that.
fn announce(server: &Server, token: &str, method: &str, target: &str) -> Connection {
    let mut connection = server.connect();
    let authorization =
        if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let kind = "Content-Type: application/merge-patch+json\r\nContent-Length: 1000\r\n";
    let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{authorization}{kind}\r\n");
    connection.send(head.as_bytes());
    connection
}

fn code(reply: &Reply) -> String {
    let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("a problem");
    body["code"].as_str().expect("a code").to_owned()
}

#[test]
fn a_role_reaches_as_far_as_its_prefix_on_every_verb() {
    let server = guarded();
    for key in ["app/a", "public/a", "other", "app"] {
        assert_eq!(
            ask(&server, "admin-token", "PUT", &format!("/v1/keys/{key}"), "1").status(),
            201
        );
    }
    let txn = |key: &str| format!(r#"{{"then":[{{"put":{{"key":"{key}","value":"2"}}}}]}}"#);
    let reads = |key: &str| format!(r#"{{"if":[{{"key":"{key}","exists":true}}],"then":[]}}"#);
    let batch = |key: &str| format!("{{\"put\":{{\"key\":\"{key}\",\"value\":\"3\"}}}}\n");
    for (status, method, target, body) in [
        (200, "GET", "/v1/keys/app/a", String::new()),
        (200, "HEAD", "/v1/keys/app/a", String::new()),
        (200, "PUT", "/v1/keys/app/a", "2".into()),
        (200, "GET", "/v1/keys?prefix=app/", String::new()),
        (200, "GET", "/v1/keys?start=app/a&end=app/b", String::new()),
        (200, "GET", "/v1/history/app/a", String::new()),
        (200, "POST", "/v1/txn", txn("app/a")),
        (200, "POST", "/v1/batch", batch("app/b")),
        (200, "POST", "/set/app/a", "value=1".into()),
        (200, "DELETE", "/v1/keys?prefix=app/b", String::new()),
        (200, "GET", "/docs/", String::new()),
        (403, "GET", "/v1/keys/app", String::new()),
        (403, "GET", "/v1/keys/other", String::new()),
        (403, "HEAD", "/v1/keys/other", String::new()),
        (403, "GET", "/get/other", String::new()),
        (403, "POST", "/set/other", "value=1".into()),
        (403, "GET", "/v1/keys?prefix=app", String::new()),
        (403, "GET", "/v1/keys", String::new()),
        (403, "GET", "/v1/keys?start=app/a", String::new()),
        (403, "GET", "/v1/history/other", String::new()),
        (403, "GET", "/v1/watch?prefix=app/&prefix=o", String::new()),
        (403, "GET", "/v1/watch", String::new()),
        (403, "PUT", "/v1/keys/public/a", "2".into()),
        (403, "DELETE", "/v1/keys/other", String::new()),
        (403, "DELETE", "/v1/keys?all=true", String::new()),
        (403, "POST", "/v1/txn", txn("other")),
        (403, "POST", "/v1/txn", reads("other")),
        (403, "POST", "/v1/leases", r#"{"ttl":"30s"}"#.into()),
        (403, "POST", "/v1/locks/jobs/a", r#"{"ttl":"30s"}"#.into()),
        (403, "GET", "/v1/status", String::new()),
        (403, "GET", "/metrics", String::new()),
        (403, "GET", "/v1/backup", String::new()),
        (403, "POST", "/v1/admin/compact", String::new()),
        (403, "DELETE", "/v1/cluster/members/1", String::new()),
        (403, "POST", "/v1/cluster/leader", "{}".into()),
    ] {
        let reply = ask(&server, "app-token", method, target, &body);
        assert_eq!(reply.status(), status, "{method} {target} {:?}", reply.line);
        if status == 403 && method != "HEAD" {
            assert_eq!(code(&reply), "forbidden", "{method} {target}");
        }
    }
    // A line of a batch is asked about like a write of its own.
    let reply = ask(&server, "app-token", "POST", "/v1/batch", &(batch("app/c") + &batch("other")));
    let text = String::from_utf8(reply.body).expect("text");
    assert!(text.contains("\"line\":1,\"status\":201") && text.contains("forbidden"), "{text}");
    let other = ask(&server, "admin-token", "GET", "/v1/keys/other", "");
    assert_eq!(other.body, b"1", "nothing was changed");
    assert_eq!(ask(&server, "reader-token", "GET", "/v1/keys", "").status(), 200);
    assert_eq!(ask(&server, "reader-token", "GET", "/v1/status", "").status(), 200);
    assert_eq!(ask(&server, "reader-token", "PUT", "/v1/keys/app/a", "").status(), 403);
    let lock = r#"{"ttl":"30s"}"#;
    assert_eq!(ask(&server, "worker-token", "POST", "/v1/locks/jobs/a", lock).status(), 200);
    assert_eq!(ask(&server, "worker-token", "POST", "/v1/locks/other", lock).status(), 403);
    assert_eq!(ask(&server, "worker-token", "POST", "/v1/leases", lock).status(), 201);
}

#[test]
fn whoever_is_not_known_learns_nothing() {
    let server = guarded();
    ask(&server, "admin-token", "PUT", "/v1/keys/public/a", "1");
    assert_eq!(ask(&server, "", "GET", "/v1/keys/public/a", "").status(), 200);
    let mut answers = Vec::new();
    for token in ["", "wrong", "over-token", "app-token2", "app-toke"] {
        let reply = ask(&server, token, "GET", "/v1/keys/app/a", "");
        assert_eq!((reply.status(), code(&reply).as_str()), (401, "unauthenticated"), "{token}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer realm=\"mmapd\""));
        assert_eq!(reply.header("mmapd-revision"), None, "{token}");
        let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("a problem");
        answers.push((body["detail"].clone(), body["outcome"].clone()));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "which part was wrong is not said: {answers:?}");
    // What is wrong is refused also where nothing would be needed.
    assert_eq!(ask(&server, "wrong", "GET", "/v1/keys/public/a", "").status(), 401);
    assert_eq!(ask(&server, "wrong", "GET", "/v1/no/route", "").status(), 401);
    for probe in ["/livez", "/readyz"] {
        assert_eq!(ask(&server, "", "GET", probe, "").status(), 200);
        assert_eq!(ask(&server, "wrong", "GET", probe, "").status(), 200);
    }
    // What is the same on every mmapd, so that a browser can ask for a token.
    for page in ["/ui", "/ui/app.js", "/docs/", "/openapi.json"] {
        assert_eq!(ask(&server, "", "GET", page, "").status(), 200, "{page}");
    }
    assert_eq!(ask(&server, "", "GET", "/metrics", "").status(), 401);
    let twice = "GET /v1/keys/app/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer app-token\r\n\
                 Authorization: Bearer admin-token\r\n\r\n";
    let mut connection = server.connect();
    connection.send(twice.as_bytes());
    assert_eq!(connection.reply(false).expect("an answer").status(), 401);
}

#[test]
fn whoever_may_not_write_is_refused_before_the_body_comes() {
    let server = guarded();
    for (token, status, method, target) in [
        ("", 401, "PUT", "/v1/keys/app/a"),
        ("", 401, "POST", "/v1/batch"),
        ("reader-token", 403, "POST", "/v1/batch"),
        ("nobody-token", 403, "POST", "/v1/txn"),
        ("app-token", 403, "PUT", "/v1/keys/other"),
        ("app-token", 403, "PATCH", "/v1/keys/other"),
        ("app-token", 403, "POST", "/set/other"),
        ("app-token", 403, "POST", "/v1/leases"),
        ("app-token", 403, "POST", "/v1/leases/keepalive"),
        ("app-token", 403, "POST", "/v1/locks/a"),
        ("app-token", 403, "POST", "/v1/cluster/members"),
    ] {
        // A body that is waited for is waited for as long as here an answer is.
        let reply = announce(&server, token, method, target).reply(false).expect("an answer");
        assert_eq!(reply.status(), status, "{token:?} {method} {target}: {}", reply.line);
    }
}

#[test]
fn where_nothing_is_for_strangers_nothing_is_told_to_them() {
    let none = tokens().replace("anonymous = [\"public\"]\n", "");
    let server = with_access(access(&none, SECRET));
    for (method, target) in [
        ("GET", "/v1/keys/%zz"),
        ("GET", "/v1/keys?limit=x"),
        ("GET", "/v1/no/route"),
        ("PUT", "/v1/watch"),
        ("GET", "/metrics"),
        ("POST", "/v1/raft/vote"),
    ] {
        let reply = ask(&server, "", method, target, "");
        assert_eq!((reply.status(), code(&reply).as_str()), (401, "unauthenticated"), "{target}");
    }
    assert_eq!(announce(&server, "", "POST", "/v1/x").reply(false).expect("one").status(), 401);
    for page in ["/livez", "/readyz", "/ui", "/ui/app.js", "/docs/", "/openapi.json"] {
        assert_eq!(ask(&server, "", "GET", page, "").status(), 200, "{page}");
    }
    // Whoever has a token without rights learns from no refusal how far the cluster is.
    let reply = ask(&server, "nobody-token", "GET", "/v1/keys/%zz", "");
    assert_eq!(reply.status(), 400);
    for name in ["mmapd-term", "mmapd-revision", "mmapd-node"] {
        assert_eq!(reply.header(name), None);
        let known = ask(&server, "app-token", "GET", "/v1/keys/%zz", "");
        assert!(known.header(name).is_some(), "{name}");
    }
}

/// What a file of tokens says of a time in milliseconds since 1970.
fn date(ms: u64) -> String {
    let (seconds, days) = (ms / 1000 % 86_400, ms / 86_400_000);
    // Days since 1st March of the year 0 (Howard Hinnant).
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn watch(server: &Server, token: &str) -> Connection {
    let mut connection = server.connect();
    let head = format!(
        "GET /v1/watch?prefix=app/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    connection.send(head.as_bytes());
    assert_eq!(connection.messages(1).status(), 200);
    connection
}

#[test]
fn a_watch_ends_with_its_token() {
    let access_of = |tokens: &str| access(tokens, SECRET);
    let end = date(mmapd::node::wall_ms() + 3000);
    let short = tokens().replace("2026-01-01T00:00:00Z", &end);
    let known = access_of(&short);
    let server = with_access(known.clone());
    let expiring = watch(&server, "over-token");
    let (app, reader) = (watch(&server, "app-token"), watch(&server, "reader-token"));
    let admin = watch(&server, "admin-token");
    let denied = |mut watch: Connection| {
        let rest = watch.rest_of_chunks();
        assert!(rest.contains("event: denied\ndata: {\"revision\":"), "{rest}");
    };
    denied(expiring);
    // One is gone, one has another role, one another hash; and one stays.
    let less = tokens()
        .replace(&sha256("app-token"), &sha256("other"))
        .replace("{ verbs = [\"read\", \"observe\"] }", "{ verbs = [\"observe\"] }");
    known.follow(&access_of(&less));
    denied(app);
    denied(reader);
    assert_eq!(ask(&server, "other", "PUT", "/v1/keys/app/x", "1").status(), 201);
    let mut admin = admin;
    admin.chunks_until("\"key\":\"app/x\"");
    known.follow(&access_of(""));
    denied(admin);
}

#[test]
fn a_stream_of_a_node_ends_with_its_secret() {
    let known = access(&tokens(), SECRET);
    let server = with_access(known.clone());
    let begin = || {
        let mut stream = server.connect();
        let head = format!(
            "POST /v1/raft/append HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {SECRET}\r\n\
             Transfer-Encoding: chunked\r\n\r\n"
        );
        stream.send(head.as_bytes());
        stream
    };
    let mut stream = begin();
    let other = format!("{SECRET}-of-tomorrow");
    let directory = Directory::parse(&tokens()).expect("it is right");
    let both = directory.clone().with_secrets(vec![other.clone(), SECRET.into()]);
    known.follow(&Access::new(both));
    known.follow(&Access::new(directory.with_secrets(vec![other])));
    assert_eq!(stream.reply(false).expect("an answer").status(), 401);
    assert_eq!(begin().reply(false).expect("an answer").status(), 401);
}

#[test]
fn what_hangs_on_a_lease_is_guarded_like_other_keys() {
    let server = guarded();
    let lease = ask(&server, "worker-token", "POST", "/v1/leases", r#"{"ttl":"1h","id":7}"#);
    assert_eq!(lease.status(), 201);
    for key in ["app/a", "public/b"] {
        let target = format!("/v1/keys/{key}?lease=7");
        assert_eq!(ask(&server, "admin-token", "PUT", &target, "1").status(), 201);
    }
    let attached = |token: &str| {
        let reply = ask(&server, token, "GET", "/v1/leases/7?keys=true", "");
        let body: serde_json::Value = serde_json::from_slice(&reply.body).expect("JSON");
        assert_eq!(body["keys"], 2, "how many there are is no secret");
        let keys = body["attached"].as_array().expect("a list").clone();
        keys.iter().map(|it| it["key"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(attached("admin-token"), ["app/a", "public/b"]);
    assert!(attached("worker-token").is_empty());
    let reply = ask(&server, "worker-token", "DELETE", "/v1/leases/7", "");
    assert_eq!((reply.status(), code(&reply).as_str()), (403, "forbidden"));
    assert_eq!(ask(&server, "admin-token", "GET", "/v1/keys/app/a", "").status(), 200);
    assert_eq!(ask(&server, "admin-token", "DELETE", "/v1/leases/7", "").status(), 200);
    // The lease that is made for a lock goes with it.
    let taken = ask(&server, "worker-token", "POST", "/v1/locks/jobs/a", r#"{"ttl":"1h"}"#);
    let taken: serde_json::Value = serde_json::from_slice(&taken.body).expect("JSON");
    let target = format!("/v1/keys/app/c?lease={}", taken["lease"]);
    assert_eq!(ask(&server, "app-token", "PUT", &target, "1").status(), 201);
    let release = format!("/v1/locks/jobs/a?token={}", taken["token"]);
    assert_eq!(ask(&server, "worker-token", "DELETE", &release, "").status(), 403);
    assert_eq!(ask(&server, "admin-token", "DELETE", "/v1/keys/app/c", "").status(), 200);
    assert_eq!(ask(&server, "worker-token", "DELETE", &release, "").status(), 200);
    // One that carries nothing is its maker's to end.
    ask(&server, "worker-token", "POST", "/v1/leases", r#"{"ttl":"1h","id":8}"#);
    assert_eq!(ask(&server, "worker-token", "DELETE", "/v1/leases/8", "").status(), 200);
}

#[test]
fn pages_of_other_servers_change_nothing() {
    let server = Server::start(Config::default());
    let put = |headers: &str| {
        let mut connection = server.connect();
        let head = format!("PUT /v1/keys/a HTTP/1.1\r\n{headers}Content-Length: 1\r\n\r\n1");
        connection.send(head.as_bytes());
        connection.reply(false).expect("an answer")
    };
    let host = format!("Host: {}\r\n", server.address);
    for lines in ["Sec-Fetch-Site: cross-site\r\n", "Origin: http://evil.example\r\n"] {
        let reply = put(&format!("{host}{lines}"));
        assert_eq!((reply.status(), code(&reply).as_str()), (403, "forbidden"), "{lines}");
    }
    for lines in ["", &host.repeat(2)] {
        let reply = put(lines);
        assert_eq!((reply.status(), code(&reply).as_str()), (400, "bad-request"), "{lines}");
    }
    assert_eq!(server.ask("GET", "/v1/keys/a").status(), 404, "nothing was written");
    // The pages that come from here.
    let own = format!("{host}Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", server.address);
    assert_eq!(put(&own).status(), 201);
}

#[test]
fn only_nodes_take_part_in_the_protocol() {
    let server = guarded();
    let term = || server.handle.status().term;
    let before = term();
    // All that are described, so that a new one is not forgotten here.
    let described = ask(&server, "admin-token", "GET", "/openapi.json", "");
    let described: serde_json::Value = serde_json::from_slice(&described.body).expect("JSON");
    let paths = described["paths"].as_object().expect("paths").keys();
    let routes: Vec<&String> = paths.filter(|path| path.starts_with("/v1/raft/")).collect();
    assert!(routes.len() >= 5, "{routes:?}");
    for route in routes {
        let target = route.as_str();
        for (token, status) in
            [("", 401), ("wrong", 401), ("over-token", 401), ("admin-token", 403)]
        {
            let reply = ask(&server, token, "POST", target, "\0\0\0\x01garbage");
            assert_eq!(reply.status(), status, "{route} with {token:?}");
        }
        // A node is let in, and then told that this is nothing.
        let reply = ask(&server, SECRET, "POST", target, "\0\0\0\x01garbage");
        assert!(matches!(reply.status(), 400 | 413 | 421), "{route}: {}", reply.line);
    }
    assert_eq!(term(), before);
}

fn guard(node: &Node, secrets: &str) {
    fs::write(node.dir.join("tokens.toml"), tokens()).expect("a file");
    fs::write(node.dir.join("secret"), secrets).expect("a file");
    node.tune("\n[auth]\ntokens = \"tokens.toml\"\npeer_secret = \"secret\"\n");
}

/// The answer of a node to somebody with a token.
fn status_of(node: &Node, token: &str, target: &str) -> Option<u16> {
    let header = format!("Bearer {token}");
    let reply = node.client().ask("GET", target, &[("Authorization", &header)], b"").ok()?;
    Some(reply.status)
}

#[test]
fn the_log_filter_is_seen_by_observers_and_set_by_operators() {
    let server = guarded();
    let filter = r#"{"filter":"info"}"#;
    for (token, look, set) in
        [("app-token", 403, 403), ("reader-token", 200, 403), ("admin-token", 200, 200)]
    {
        assert_eq!(ask(&server, token, "GET", "/v1/admin/log", "").status(), look, "{token}");
        assert_eq!(ask(&server, token, "PUT", "/v1/admin/log", filter).status(), set, "{token}");
    }
}

#[test]
fn a_cluster_with_a_secret_works_and_changes_it_node_by_node() {
    let new = format!("{SECRET}-of-tomorrow");
    let mut cluster = Cluster::new(3, "");
    for node in &cluster.nodes {
        guard(node, SECRET);
    }
    cluster.start_all();
    let put = |node: &Node, key: &str| {
        let headers = [("Authorization", "Bearer admin-token")];
        let reply = node.client().ask("PUT", &format!("/v1/keys/{key}"), &headers, b"1");
        reply.ok().map(|reply| reply.status)
    };
    wait("a write through each node", || {
        cluster.nodes.iter().all(|node| matches!(put(node, "k"), Some(200 | 201))).then_some(())
    });
    // Nobody is told where the leader is who may not do this there.
    for node in &cluster.nodes {
        let refused = |method: &str, target: &str| {
            let headers = [("Authorization", "Bearer app-token"), ("Content-Type", "text/plain")];
            node.client().ask(method, target, &headers, b"x").expect("an answer").status
        };
        assert_eq!(refused("PUT", "/v1/keys/other?redirect=true"), 403);
        assert_eq!(refused("DELETE", "/v1/keys/other?redirect=true"), 403);
        assert_eq!(refused("DELETE", "/v1/keys?prefix=o&redirect=true"), 403);
        assert_eq!(refused("GET", "/v1/locks/a?redirect=true"), 403);
        assert_eq!(refused("DELETE", "/v1/leases/1?redirect=true"), 403);
    }
    // Both are known, then the new one is said, then the old one is forgotten.
    for secrets in [format!("{SECRET}\n{new}"), format!("{new}\n{SECRET}"), new.clone()] {
        for node in &cluster.nodes {
            fs::write(node.dir.join("secret"), &secrets).expect("a file");
            node.signal(Signal::HUP);
        }
        for node in &cluster.nodes {
            let knows = |secret| status_of(node, secret, "/v1/status") == Some(200);
            let keeps = secrets.lines().any(|line| line == SECRET);
            wait("it is read", || (knows(&new) && knows(SECRET) == keeps).then_some(()));
        }
        wait("writes go on", || {
            cluster.nodes.iter().all(|node| matches!(put(node, "k"), Some(200))).then_some(())
        });
    }
    // A node that does not know it is no node to the others.
    cluster.nodes[2].kill();
    fs::write(cluster.nodes[2].dir.join("secret"), SECRET).expect("a file");
    cluster.nodes[2].spawn();
    wait("it is refused", || {
        let log = cluster.nodes[2].log_tail();
        (log.contains("401") || log.contains("refused")).then_some(())
    });
    // It may have led.
    wait("the others go on", || {
        matches!(put(&cluster.nodes[0], "k2"), Some(200 | 201)).then_some(())
    });
    // Without the others it knows no leader, or asks one in vain.
    let ask = || status_of(&cluster.nodes[2], "admin-token", "/v1/keys/k2?timeout=1s");
    let alone = wait("an answer of the node that was started", ask);
    assert!(matches!(alone, 503 | 504), "{alone}");
    fs::write(cluster.nodes[2].dir.join("secret"), &new).expect("a file");
    cluster.nodes[2].signal(Signal::HUP);
    wait("it is back", || {
        (status_of(&cluster.nodes[2], "admin-token", "/v1/keys/k2") == Some(200)).then_some(())
    });
}

#[test]
fn tokens_are_read_again() {
    let mut cluster = Cluster::new(1, "");
    guard(&cluster.nodes[0], SECRET);
    cluster.start_all();
    let node = &cluster.nodes[0];
    assert_eq!(status_of(node, "admin-token", "/v1/keys/k"), Some(404));
    let file = node.dir.join("tokens.toml");
    let other = tokens().replace(&sha256("admin-token"), &sha256("another"));
    fs::write(&file, &other).expect("a file");
    node.signal(Signal::HUP);
    wait("the new token is known", || {
        (status_of(node, "another", "/v1/keys/k") == Some(404)).then_some(())
    });
    assert_eq!(status_of(node, "admin-token", "/v1/keys/k"), Some(401));
    // What is wrong changes nothing.
    fs::write(&file, "x = 1").expect("a file");
    node.signal(Signal::HUP);
    wait("it complains", || node.log_tail().contains("left alone").then_some(()));
    assert_eq!(status_of(node, "another", "/v1/keys/k"), Some(404));
}

/// The lines of a file of JSON.
fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_audit_log_says_who_asked_for_what() {
    let mut cluster = Cluster::new(1, "");
    guard(&cluster.nodes[0], SECRET);
    cluster.nodes[0].tune("[log]\naudit = \"audit.json\"\n");
    cluster.start_all();
    let node = &cluster.nodes[0];
    let ask = |token: &str, method: &str, target: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Request-Id", "mine")];
        node.client().ask(method, target, &headers, b"x").expect("an answer").status
    };
    let path = node.dir.join("audit.json");
    assert_eq!(ask("app-token", "PUT", "/v1/keys/app/a%00"), 201);
    assert_eq!(ask("app-token", "GET", "/v1/keys/app/a%00"), 200);
    assert_eq!(ask("app-token", "DELETE", "/v1/keys?prefix=other"), 403);
    assert_eq!(ask("app-token", "GET", "/v1/keys/other"), 403);
    let all = lines(&path);
    let seen: Vec<_> = all
        .iter()
        .map(|line| {
            let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
            assert_eq!((text("caller"), text("request_id")), ("app".into(), "mine".into()));
            assert!(text("remote").starts_with("127.0.0.1:") && text("timestamp").ends_with('Z'));
            (text("verb"), text("start"), line["allowed"] == true)
        })
        .collect();
    let line = |verb: &str, start: &str, allowed| (verb.to_owned(), start.to_owned(), allowed);
    let want = [
        line("write", "app/a\\x00", true),
        line("write", "other", false),
        line("read", "other", false),
    ];
    assert_eq!(seen, want);
    // Who is not known is told of as well, and nothing of what was sent.
    for token in ["wrong", "over-token"] {
        assert_eq!(ask(token, "DELETE", "/v1/keys/app/a"), 401);
        let all = lines(&path);
        let last = all.last().expect("a line");
        assert_eq!((&last["allowed"], &last["request_id"]), (&false.into(), &"mine".into()));
        assert_eq!((&last["method"], &last["route"]), (&"DELETE".into(), &"/v1/keys/{key}".into()));
        assert!(last["remote"].as_str().is_some_and(|remote| remote.starts_with("127.0.0.1:")));
        assert!(!last.to_string().contains(token), "{last}");
    }
    assert!(!node.log_tail().contains("app-token"), "no token is told");
    // It is moved away, and goes on in a new file.
    fs::rename(&path, node.dir.join("audit.old")).expect("a file");
    node.signal(Signal::HUP);
    wait("it is opened again", || path.exists().then_some(()));
    assert_eq!(ask("admin-token", "PUT", "/v1/keys/b"), 201);
    assert_eq!(lines(&path).len(), 1);
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &fs::metadata(&path).expect("it is there").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn beyond_this_machine_nobody_listens_unguarded() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("tokens.toml", &tokens());
    write("secret", SECRET);
    write("short", "short");
    write("wrong.toml", "[[tokens]]\nname = \"a\"\nsha256 = \"1\"\nroles = []\n");
    let check = |auth: &str| {
        let listen = "[node]\nlisten = \"0.0.0.0:3001\"\nadvertise = \"http://10.0.0.1:3001\"\n";
        write("node.toml", &format!("{listen}{auth}"));
        run(dir.path(), &["--config", "node.toml", "--check-config"])
    };
    for (auth, why) in [
        ("", "set auth.tokens and auth.peer_secret"),
        ("[auth]\ntokens = \"tokens.toml\"\n", "set auth.tokens and auth.peer_secret"),
        ("[auth]\npeer_secret = \"secret\"\n", "set auth.tokens and auth.peer_secret"),
        ("[auth]\nopen = true\ntokens = \"none.toml\"\n", "none.toml: cannot be read"),
        ("[auth]\nopen = true\ntokens = \"wrong.toml\"\n", "64 hex digits"),
        ("[auth]\nopen = true\npeer_secret = \"short\"\n", "at least 32"),
    ] {
        let (code, text) = check(auth);
        assert_eq!(code, Some(78), "{auth}: {text}");
        assert!(text.contains(why), "{auth}: {text}");
    }
    for auth in
        ["[auth]\nopen = true\n", "[auth]\ntokens = \"tokens.toml\"\npeer_secret = \"secret\"\n"]
    {
        assert_eq!(check(auth).0, Some(0), "{auth}");
    }
}

#[test]
fn tokens_alone_are_for_a_node_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a file");
    write("tokens.toml", &tokens());
    write("secret", SECRET);
    let check = |text: &str| {
        write("node.toml", text);
        run(dir.path(), &["--config", "node.toml", "--check-config"])
    };
    let alone = "[auth]\ntokens = \"tokens.toml\"\n";
    assert_eq!(check(alone).0, Some(0));
    let peers = "[[cluster.peers]]\nid = 1\nurl = \"http://127.0.0.1:3001\"\n\
                 [[cluster.peers]]\nid = 2\nurl = \"http://127.0.0.1:3002\"\n";
    let join = "[cluster]\njoin = \"http://127.0.0.1:3002\"\n";
    for more in [peers, join] {
        for open in ["", "open = true\n"] {
            let (code, text) = check(&format!("{alone}{open}{more}"));
            assert_eq!(code, Some(78), "{text}");
            assert!(text.contains("auth.tokens") && text.contains("auth.peer_secret"), "{text}");
        }
        assert_eq!(check(&format!("{alone}peer_secret = \"secret\"\n{more}")).0, Some(0));
    }
    // Alone it lets nobody in as a node, and takes no other in.
    let directory = Directory::parse(&tokens()).expect("it is right");
    let server = with_access(Access::new(directory));
    assert_eq!(ask(&server, "", "POST", "/v1/raft/vote", "\0\0\0\x01garbage").status(), 401);
    let member = r#"{"id":2,"url":"http://127.0.0.1:3002"}"#;
    let reply = ask(&server, "admin-token", "POST", "/v1/cluster/members", member);
    assert_eq!((reply.status(), code(&reply).as_str()), (422, "unprocessable"));
}

#[test]
fn a_reload_never_opens_what_is_guarded() {
    let cluster = Cluster::new(1, "");
    let mut cluster = cluster;
    let port = cluster.nodes[0].port;
    let listen = |address: &str, auth: &str| {
        format!(
            "[node]\nlisten = \"{address}:{port}\"\nadvertise = \"http://127.0.0.1:{port}\"\n{auth}"
        )
    };
    let guard = "[auth]\ntokens = \"tokens.toml\"\npeer_secret = \"secret\"\n";
    let node = &mut cluster.nodes[0];
    fs::write(node.dir.join("tokens.toml"), tokens()).expect("a file");
    fs::write(node.dir.join("secret"), SECRET).expect("a file");
    let file = node.dir.join("node.toml");
    fs::write(&file, listen("0.0.0.0", guard)).expect("a file");
    node.start();
    let refusals = || node.log_tail().matches("left alone").count();
    // The address of the file is safe, that of the process is not.
    for (count, auth) in (1..).zip(["", "[auth]\ntokens = \"tokens.toml\"\n"]) {
        fs::write(&file, listen("127.0.0.1", auth)).expect("a file");
        node.signal(Signal::HUP);
        wait("it refuses", || (refusals() == count).then_some(()));
        assert!(node.log_tail().contains("whoever reaches 0.0.0.0"), "{}", node.log_tail());
        assert_eq!(node.client().get("/v1/keys/k").expect("an answer").status, 401);
    }
    let metrics = [("Authorization", "Bearer admin-token")];
    let metrics = node.client().ask("GET", "/metrics", &metrics, b"").expect("an answer").text();
    assert!(metrics.contains("mmapd_config_reloads_total{outcome=\"failed\"} 2"), "{metrics}");
}

fn run(dir: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mmapd"))
        .args(args)
        .current_dir(dir)
        .env_remove("PORT")
        .output()
        .expect("the binary starts");
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn the_command_makes_what_the_files_take() {
    let dir = tempfile::tempdir().expect("a directory");
    let (code, text) = run(dir.path(), &["token", "--name", "ci", "--role", "admin"]);
    assert_eq!(code, Some(0), "{text}");
    let token = text.lines().find(|line| line.starts_with("mmapd_")).expect("a token");
    let entry = text.split_once("SIGHUP:\n").expect("an entry").1;
    let entry = entry.split_once("# Roles").expect("then roles").0;
    let role = "[[roles]]\nname = \"admin\"\nrights = [{ verbs = [\"read\"] }]\n";
    let directory = Directory::parse(&format!("{role}{entry}")).expect("it fits");
    let caller = directory.identify(Some(&format!("Bearer {token}")), 0).expect("it is known");
    assert_eq!(caller.name(), "ci");
    let (code, secret) = run(dir.path(), &["token", "--peer"]);
    assert_eq!(code, Some(0));
    assert_eq!(mmapd::auth::read_secrets(&secret).expect("one").len(), 1);
    assert_ne!(run(dir.path(), &["token", "--peer"]).1, secret);
}
