//! What the logs of real processes say: one request under one name on all nodes, the filter
//! while a node runs, settings that are read again, and nothing that is nobody's business.

#[path = "support/process.rs"]
mod process;

use std::fs;

use mmapd::auth::Hash;
use process::{Cluster, Node, Reply, wait};
use rustix::process::Signal;
use serde_json::{Value as Json, json};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const ACCESS: &str = "mmapd::access";

/// All that a node wrote.
fn log(node: &Node) -> String {
    let bytes = fs::read(node.dir.join("stderr.log")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The lines of a log of JSON. Its last one may be half written.
fn lines(node: &Node) -> Vec<Json> {
    log(node).lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The lines that requests with this id got on this node, waited for: a node may answer another
/// one before it tells of it.
fn answered(node: &Node, id: &str) -> Vec<Json> {
    let is_it = |line: &Json| line["target"] == ACCESS && line["request_id"] == id;
    lines(node).into_iter().filter(is_it).collect()
}

fn ask(node: &Node, request: (&str, &str), headers: &[(&str, &str)], body: &str) -> Reply {
    let (method, target) = request;
    let reply = node.client().ask(method, target, headers, body.as_bytes());
    reply.unwrap_or_else(|silence| panic!("{method} {target}: {silence:?}"))
}

/// What must be on every line about a request.
fn names(line: &Json) -> [&str; 5] {
    assert!(line["status"].is_u64() && line["duration_ms"].is_number(), "{line}");
    ["request_id", "trace_id", "span_id", "method", "route"]
        .map(|name| line[name].as_str().unwrap_or_else(|| panic!("no {name} in {line}")))
}

#[test]
fn a_request_has_one_name_on_all_nodes() {
    let cluster = Cluster::start(3, "[log]\nlevel = \"debug\"\nformat = \"json\"\n");
    let (at, _) = cluster.leader_after(0);
    let leader = &cluster.nodes[at];
    let follower = &cluster.nodes[(at + 1) % 3];
    let to_leader = format!(r#"{{"to":{}}}"#, leader.id);
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let learner = r#"{"id":9,"url":"http://127.0.0.1:9"}"#;
    let key = "/v1/keys/{key}";
    let propose = "/v1/raft/propose";
    for (id, request, body, parent, routes) in [
        ("put-1", ("PUT", "/v1/keys/a/b"), "1", Some(&parent), [key, propose]),
        ("delete-1", ("DELETE", "/v1/keys/a/b"), "", Some(&parent), [key, propose]),
        ("put-2", ("PUT", "/v1/keys/a/b"), "1", None, [key, propose]),
        ("put-3", ("PUT", "/v1/keys/a/b"), "1", Some(&parent.to_uppercase()), [key, propose]),
        ("lead-1", ("POST", "/v1/cluster/leader"), &to_leader, Some(&parent), {
            ["/v1/cluster/leader", "/v1/raft/handover"]
        }),
        ("add-1", ("POST", "/v1/cluster/members"), learner, Some(&parent), {
            ["/v1/cluster/members"; 2]
        }),
    ] {
        let mut headers = vec![("Request-Id", id)];
        headers.extend(parent.map(|parent| ("Traceparent", parent.as_str())));
        let reply = ask(follower, request, &headers, body);
        assert_eq!(reply.header("request-id"), Some(id));
        let seen: Vec<Json> = [follower, leader]
            .into_iter()
            .zip(routes)
            .map(|(node, route)| {
                let line = wait("both nodes tell of it", || answered(node, id).pop());
                let [_, _, span, _, told] = names(&line);
                assert_eq!(told, route, "{line}");
                assert!(span.len() == 16 && span != PARENT, "{line}");
                line
            })
            .collect();
        assert_eq!(seen[0]["status"], reply.status, "{}", seen[0]);
        assert_eq!(seen[0]["level"], "DEBUG");
        assert_eq!(seen[0]["trace_id"], seen[1]["trace_id"], "{id}");
        assert_ne!(seen[0]["span_id"], seen[1]["span_id"], "{id}");
        let is_ours = parent.is_some_and(|parent| parent.contains(TRACE));
        assert_eq!(seen[0]["trace_id"] == TRACE, is_ours, "{id}: {}", seen[0]);
    }
    // The third node had nothing to do with them.
    assert!(answered(&cluster.nodes[(at + 2) % 3], "put-1").is_empty());
}

#[test]
fn what_fails_through_our_fault_is_told_always() {
    let mut cluster = Cluster::start(3, "[log]\nformat = \"json\"\n");
    let (at, _) = cluster.leader_after(0);
    for (other, node) in cluster.nodes.iter_mut().enumerate() {
        if other != at {
            node.kill();
        }
    }
    let node = &cluster.nodes[at];
    let ask = |id: &str, method: &str, target: &str| {
        ask(node, (method, target), &[("Request-Id", id)], "1").status
    };
    assert_eq!(ask("not-there", "GET", "/v1/nothing"), 404);
    let status = ask("lost", "PUT", "/v1/keys/secret-name?timeout=100ms");
    assert!(status >= 500, "{status}");
    let line = wait("the failure is told", || answered(node, "lost").pop());
    assert_eq!((&line["level"], &line["status"]), (&"WARN".into(), &status.into()), "{line}");
    assert_eq!(names(&line)[3..], ["PUT", "/v1/keys/{key}"]);
    assert!(answered(node, "not-there").is_empty(), "that is the client's own");
    assert!(!log(node).contains("secret-name"));
    // A probe that fails does what it is for.
    wait("it is not ready", || (ask("probe", "GET", "/readyz") == 503).then_some(()));
    assert!(answered(node, "probe").is_empty());
}

/// A node alone that writes JSON.
fn alone() -> Cluster {
    let mut cluster = Cluster::new(1, "");
    cluster.nodes[0].tune("\n[log]\nformat = \"json\"\nlevel = \"info\"\n");
    cluster.start_all();
    cluster
}

fn filter(node: &Node) -> String {
    let now = node.client().get("/v1/admin/log").expect("an answer").json();
    now["filter"].as_str().expect("a filter").to_owned()
}

fn set_filter(node: &Node, body: &Json) -> u16 {
    ask(node, ("PUT", "/v1/admin/log"), &[], &body.to_string()).status
}

/// Is a request told of now? The line is written before the answer is sent.
fn tells(node: &Node, id: &str) -> bool {
    assert_eq!(ask(node, ("GET", "/v1/status"), &[("Request-Id", id)], "").status, 200);
    !answered(node, id).is_empty()
}

#[test]
fn the_filter_changes_while_the_node_runs() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    assert!(!tells(node, "before"));
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=debug"})), 200);
    assert!(tells(node, "during"));
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=loud"})), 400);
    assert!(tells(node, "still"), "a bad filter changes nothing");
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=debug", "for": "100ms"})), 200);
    wait("it falls back", || (filter(node) == "info").then_some(()));
    assert!(!tells(node, "after"));
    // A later change is not ended by the end of an earlier one, which waits for what is told
    // once it is over.
    assert_eq!(set_filter(node, &json!({"filter": "debug", "for": "100ms"})), 200);
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=debug"})), 200);
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=debug", "for": "300ms"})), 200);
    wait("it falls back", || (filter(node) == "info").then_some(()));
    // SIGHUP does as well.
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=debug", "for": "1h"})), 200);
    assert!(tells(node, "again"));
    node.signal(Signal::HUP);
    wait("the settings hold", || (filter(node) == "info").then_some(()));
    assert!(!tells(node, "at-last"));
}

/// Times that settings were read again, with this outcome.
fn reloads(node: &Node, outcome: &str) -> u64 {
    let text = node.client().get("/metrics").expect("an answer").text();
    let series = format!("mmapd_config_reloads_total{{outcome=\"{outcome}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.expect("it is there from the start").parse().expect("a number")
}

#[test]
fn settings_that_are_wrong_change_nothing() {
    let cluster = alone();
    let node = &cluster.nodes[0];
    let file = node.dir.join("node.toml");
    let good = fs::read_to_string(&file).expect("a file");
    assert_eq!((reloads(node, "done"), reloads(node, "failed")), (0, 0));
    assert_eq!(set_filter(node, &json!({"filter": "mmapd::access=debug"})), 200);
    // What is right in a file with a mistake is not taken over either.
    let debug = good.replace("level = \"info\"", "level = \"debug\"");
    fs::write(&file, format!("{debug}\n[auth]\ntokens = \"none.toml\"\n")).expect("a file");
    node.signal(Signal::HUP);
    wait("it is counted", || (reloads(node, "failed") == 1).then_some(()));
    assert_eq!(filter(node), "info,mmapd::access=debug");
    let complaint = lines(node).into_iter().find(|line| line["level"] == "ERROR");
    let complaint = complaint.expect("a line").to_string();
    assert!(complaint.contains("left alone") && complaint.contains("none.toml"), "{complaint}");
    fs::write(&file, debug).expect("a file");
    node.signal(Signal::HUP);
    wait("it is counted", || (reloads(node, "done") == 1).then_some(()));
    assert_eq!((reloads(node, "failed"), filter(node)), (1, "debug".into()));
    assert!(tells(node, "by-settings"));
}

const KEY: &str = "planted/key-8d1f";
const VALUE: &str = "planted-value-5c2e";
const TOKEN: &str = "planted-token-93ab";
const SECRET: &str = "planted-secret-of-nodes-0f6d-with-enough-characters";

#[test]
fn nothing_that_is_planted_shows_in_the_logs() {
    let mut cluster = Cluster::new(2, "");
    let hash = Hash::of(TOKEN.as_bytes()).to_string();
    let verbs = r#"["read", "write", "lease", "lock", "observe", "operate"]"#;
    let tokens = format!(
        "[[roles]]\nname = \"all\"\nrights = [{{ verbs = {verbs} }}]\n\
         [[tokens]]\nname = \"a\"\nsha256 = \"{hash}\"\nroles = [\"all\"]\n"
    );
    for (node, format) in cluster.nodes.iter().zip(["json", "text"]) {
        fs::write(node.dir.join("tokens.toml"), &tokens).expect("a file");
        fs::write(node.dir.join("secret"), SECRET).expect("a file");
        node.tune("\n[auth]\ntokens = \"tokens.toml\"\npeer_secret = \"secret\"\n");
        let audit = "audit = \"audit.json\"\naudit_reads = true";
        node.tune(&format!("[log]\nlevel = \"trace\"\nformat = \"{format}\"\n{audit}\n"));
    }
    cluster.start_all();
    let bearer = format!("Bearer {TOKEN}");
    let put = json!({"key": KEY, "value": VALUE});
    let one = format!("/v1/keys/{KEY}");
    for node in &cluster.nodes {
        for (method, target, body) in [
            ("PUT", one.clone(), VALUE.to_owned()),
            ("GET", one.clone(), String::new()),
            ("GET", format!("/v1/keys?prefix={KEY}"), String::new()),
            ("GET", format!("/v1/keys?prefix={KEY}&limit=none"), String::new()),
            ("GET", format!("/v1/history/{KEY}"), String::new()),
            ("GET", format!("{one}?revision=99999999"), String::new()),
            ("GET", format!("{one}?{KEY}={VALUE}"), String::new()),
            ("PUT", format!("{one}?ttl={VALUE}"), VALUE.to_owned()),
            ("POST", "/v1/txn".to_owned(), json!({"then": [{"put": put}]}).to_string()),
            ("POST", "/v1/txn".to_owned(), json!({"then": VALUE}).to_string()),
            ("POST", "/v1/batch".to_owned(), json!({"put": put}).to_string() + "\n"),
            ("POST", format!("/set/{KEY}"), format!("value={VALUE}")),
            ("GET", format!("/get/{KEY}"), String::new()),
            ("POST", format!("/v1/locks/{KEY}"), json!({"ttl": "30s"}).to_string()),
            ("GET", format!("/v1/locks/{KEY}"), String::new()),
            ("GET", format!("/v1/nowhere/{KEY}"), String::new()),
            ("DELETE", format!("/v1/keys?prefix={KEY}"), String::new()),
        ] {
            for token in [&bearer, "Bearer planted-token-wrong"] {
                let headers = [("Authorization", token), ("Mmapd-Fence", KEY), ("Cookie", VALUE)];
                // A fence that is none is refused; without it the request does what it says.
                for headers in [&headers[..], &headers[..1]] {
                    ask(node, (method, &target), headers, &body);
                }
            }
        }
        let wrong = json!({"filter": VALUE});
        let headers = [("Authorization", bearer.as_str())];
        let refused = ask(node, ("PUT", "/v1/admin/log"), &headers, &wrong.to_string());
        assert_eq!(refused.status, 400);
        let audit = fs::read_to_string(node.dir.join("audit.json")).expect("a file");
        assert!(audit.contains(KEY), "the requests were carried out");
        assert!(!audit.contains(VALUE) && !audit.contains("planted-token"));
    }
    for node in &cluster.nodes {
        let log = log(node);
        assert!(log.contains("TRACE") && log.contains("/v1/keys/{key}"), "all is told");
        let is_planted = |line: &&str| line.contains("planted") || line.contains(&hash);
        assert_eq!(log.lines().find(is_planted), None, "node {} tells", node.id);
    }
}
