//! Keys that change while somebody waits for them, end by themselves, or are forgotten. No
//! test depends on how long anything takes: each waits for what has to come.

use std::time::Duration;

use mmapd::config::Config;
use mmapd::machine::{Applied, Command, Granted};
use serde_json::{Value, json};

use super::http::{Connection, Reply, Server};
use super::wait;

/// A request with a body.
fn send(connection: &mut Connection, head: &str, body: &str) {
    let length = body.len();
    let text = format!("{head}Host: x\r\nContent-Length: {length}\r\n\r\n{body}");
    connection.send(text.as_bytes());
}

fn ask(connection: &mut Connection, head: &str, body: &str) -> Reply {
    send(connection, head, body);
    connection.reply(false).expect("an answer")
}

fn put(server: &Server, key: &str, body: &str) -> Reply {
    ask(&mut server.connect(), &format!("PUT /v1/keys/{key} HTTP/1.1\r\n"), body)
}

fn tag(reply: &Reply) -> String {
    reply.header("etag").expect("a tag").to_owned()
}

/// Begins to wait for another version of key `a`.
fn poll(server: &Server, tag: &str) -> Connection {
    let mut connection = server.connect();
    let head = format!("GET /v1/keys/a HTTP/1.1\r\nIf-None-Match: {tag}\r\nPrefer: wait=25\r\n");
    send(&mut connection, &head, "");
    connection
}

fn answer(mut poll: Connection) -> Reply {
    poll.reply(false).expect("an answer")
}

fn parsed(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).expect("JSON")
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(future)
}

/// Only one request may be in flight, and who waits is not one. A poll that comes while a write
/// is in flight is refused; then it begins again.
#[test]
fn a_poll_is_answered_by_what_it_waits_for_and_leaves_room_meanwhile() {
    let mut config = Config::default();
    config.limits.in_flight = 1;
    let server = Server::start(config);
    wait("a poll that is let in", || {
        let known = tag(&put(&server, "a", "before"));
        let waiting = poll(&server, &known);
        wait("room for others", || put(&server, "other", "x").status() != 429);
        let written = put(&server, "a", "after");
        assert_eq!(written.status(), 200);
        let reply = answer(waiting);
        if reply.status() == 429 {
            return false;
        }
        assert_eq!((reply.status(), &reply.body[..]), (200, &b"after"[..]));
        assert_eq!(tag(&reply), tag(&written));
        assert_eq!(reply.header("preference-applied"), Some("wait=25"));
        true
    });
}

#[test]
fn a_poll_ends_when_the_key_is_gone() {
    let server = Server::start(Config::default());
    let known = tag(&put(&server, "a", "x"));
    let polls: Vec<Connection> = (0..20).map(|_| poll(&server, &known)).collect();
    assert_eq!(server.ask("DELETE", "/v1/keys/a").status(), 200);
    for waiting in polls {
        let reply = answer(waiting);
        assert_eq!(reply.status(), 404);
        assert_eq!(parsed(&reply)["code"], "not-found");
    }
}

#[test]
fn a_poll_ends_when_the_node_drains() {
    let server = Server::start(Config::default());
    let known = tag(&put(&server, "a", "x"));
    let waiting = poll(&server, &known);
    run(server.handle.drain());
    let reply = answer(waiting);
    assert_eq!(reply.status(), 503);
    assert_eq!(parsed(&reply)["code"], "draining");
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[test]
fn a_key_ends_when_its_time_is_over_and_the_history_says_why() {
    let mut config = Config::default();
    config.raft.tick = Duration::from_millis(5);
    let server = Server::start(config);
    let written = put(&server, "a?ttl=50ms", "x");
    assert_eq!(parsed(&written)["ttl"], "50ms");
    let known = tag(&written);
    assert_eq!(answer(poll(&server, &known)).status(), 404);
    let past = server.json("/v1/history/a");
    let revision = parsed(&written)["revision"].clone();
    let items = past["items"].as_array().expect("a list");
    assert_eq!(items.len(), 2, "{past}");
    let gone = &items[0];
    assert_eq!((&gone["type"], &gone["reason"]), (&json!("delete"), &json!("ttl")), "{past}");
    assert_eq!(gone["prev_revision"], revision);
    assert_eq!(items[1]["revision"], revision);
    // As it was, it is still there.
    let path = format!("/v1/keys/a?revision={revision}");
    assert_eq!(server.ask("GET", &path).body, b"x");
}

#[test]
fn a_patch_moves_a_key_from_its_lease_to_a_time_of_its_own() {
    let server = Server::start(Config::default());
    let grant = Command::Grant { id: 5, ttl_ms: 3_600_000 };
    let granted = run(server.handle.propose(grant, Duration::from_secs(30)));
    assert_eq!(granted, Ok(Applied::Granted(Granted { id: 5, ttl_ms: 3_600_000 })));
    let written = parsed(&put(&server, "a?lease=5", "x"));
    assert_eq!((&written["lease"], &written["ttl"]), (&json!(5), &Value::Null));
    let mut connection = server.connect();
    let mut patch = |body: &str| {
        let head = "PATCH /v1/keys/a HTTP/1.1\r\nContent-Type: application/merge-patch+json\r\n";
        let touched = parsed(&ask(&mut connection, head, body));
        let read = "GET /v1/keys/a HTTP/1.1\r\nAccept: application/json\r\n";
        let found = parsed(&ask(&mut connection, read, ""));
        assert_eq!(touched["mod_revision"], written["revision"]);
        for field in ["key", "mod_revision", "lease"] {
            assert_eq!(touched[field], found[field], "{field}");
        }
        (touched["lease"].clone(), touched["ttl"].clone())
    };
    assert_eq!(patch("{\"ttl\":null}"), (json!(5), Value::Null));
    assert_eq!(patch("{\"ttl\":\"1h\"}"), (Value::Null, json!("1h")));
    assert_eq!(patch("{\"ttl\":null}"), (Value::Null, Value::Null));
}

#[test]
fn the_past_is_told_by_pages_of_limited_weight() {
    let server = Server::start(Config::default());
    let value = "v".repeat(600 << 10);
    let mut written: Vec<Value> =
        (0..5).map(|_| parsed(&put(&server, "a", &value))["revision"].clone()).collect();
    written.reverse();
    let (mut seen, mut before) = (Vec::new(), String::new());
    loop {
        let page = server.json(&format!("/v1/history/a{before}"));
        let items = page["items"].as_array().expect("a list");
        assert!((1..4).contains(&items.len()), "{}", items.len());
        seen.extend(items.iter().map(|item| item["revision"].clone()));
        if page["more"] == false {
            assert_eq!(page["next_before"], Value::Null);
            break;
        }
        assert_eq!(Some(&page["next_before"]), seen.last());
        before = format!("?before={}", page["next_before"]);
    }
    assert_eq!(seen, written);
}

#[test]
fn what_is_forgotten_is_gone() {
    let mut config = Config::default();
    config.storage.history = 2;
    let server = Server::start(config);
    let first = parsed(&put(&server, "a", "one"))["revision"].clone();
    for value in ["two", "three", "four"] {
        put(&server, "a", value);
    }
    wait("the oldest changes to be forgotten", || {
        server.json("/v1/history/a")["oldest_revision"].as_u64() > first.as_u64()
    });
    let past = server.json("/v1/history/a");
    let oldest = &past["oldest_revision"];
    assert_eq!(past["items"].as_array().map(Vec::len), Some(2), "{past}");
    assert_eq!((&past["items"][0]["value"], &past["more"]), (&json!("four"), &json!(false)));
    for path in [format!("/v1/history/a?before={oldest}"), format!("/v1/keys/a?revision={first}")] {
        let reply = server.ask("GET", &path);
        assert_eq!(reply.status(), 410, "{path}");
        let problem = parsed(&reply);
        assert_eq!(problem["code"], "compacted");
        assert_eq!(&problem["oldest_revision"], oldest);
    }
    // What was after that revision is still known.
    assert_eq!(server.ask("GET", &format!("/v1/keys/a?revision={oldest}")).body, b"two");
}
