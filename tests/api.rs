//! The public surface, byte by byte: every file in `tests/api` is a script of requests with
//! the answers written below them (`tests/support/transcript.rs` explains the form).
//! `UPDATE=1 cargo test --test api` rewrites the answers; read the difference before you
//! commit it, since clients see it too.
//!
//! All of it but what is about one process is also run through a follower of a cluster of
//! three processes, against the same files.
//!
//! Left out: what else needs more than one node, which is `cluster.rs`.

#[path = "support/follower.rs"]
mod follower;
#[path = "support/http.rs"]
mod http;
#[path = "support/over_time.rs"]
mod over_time;
#[path = "support/process.rs"]
mod process;
#[path = "support/transcript.rs"]
mod transcript;

use std::path::{Path, PathBuf};

use follower::Follower;
use http::{Connection, Server};
use mmapd::config::Config;

macro_rules! transcripts {
    (
        both { $($both:ident)* }
        alone { $($alone:ident: $why:literal,)* }
    ) => {
        $(#[test]
        fn $both() {
            transcript::check(&script(stringify!($both)));
        })*

        $(#[doc = concat!("Not through a follower: ", $why)]
        #[test]
        fn $alone() {
            transcript::check(&script(stringify!($alone)));
        })*

        mod through_a_follower {
            $(#[test]
            fn $both() {
                super::transcript::check_through_a_follower(&super::script(stringify!($both)));
            })*
        }

        #[test]
        fn every_transcript_is_run() {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api");
            let mut found: Vec<String> = std::fs::read_dir(dir)
                .expect("a directory")
                .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
                .collect();
            found.sort();
            let mut run = vec![
                $(concat!(stringify!($both), ".txt").to_owned(),)*
                $(concat!(stringify!($alone), ".txt").to_owned(),)*
            ];
            run.sort();
            assert_eq!(found, run);
        }
    };
}

transcripts! {
    both {
        batch compact conditions content_types fence framing history idempotency keys lease_reads leases legacy
        log_filter list list_cursors locks ndjson one_key parameters past patch pinned raft_routes range_delete ranges reads
        request_ids routes slow_body slow_head slow_idle ttl txn txn_errors ui values waits watch
    }
    alone {
        connections: "no process may be started with room for no connection",
        in_flight: "no process may be started with room for no request",
        watch_limit: "no process may be started with room for no watch",
        leader: "there nobody else can lead, and with others leadership moves",
        probes: "one of them asks whether the node leads",
        redirect: "a follower sends to the leader, as the next test shows",
        quota: "no process may be started with a quota of nothing",
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/api/{name}.txt"))
}

#[test]
fn a_follower_sends_to_the_leader_who_asks_for_it() {
    let follower = Follower::start("");
    for (method, target) in [
        ("GET", "/v1/keys/a%2F%FF?redirect=true"),
        ("HEAD", "/v1/keys/a?redirect=true"),
        ("PUT", "/v1/keys/a?ttl=1h&redirect"),
        ("DELETE", "/v1/keys/a?redirect=1"),
        ("GET", "/v1/keys?prefix=a&redirect=true"),
        ("DELETE", "/v1/keys?prefix=a&redirect=true"),
        ("GET", "/v1/leases?redirect=true"),
        ("DELETE", "/v1/locks/a?token=1&redirect=true"),
    ] {
        let mut connection = Connection::to(follower.address());
        connection.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let reply = connection.reply(method == "HEAD").expect("an answer");
        assert_eq!(reply.status(), 307, "{method} {target}");
        let leader = format!("{}{target}", follower.leader_url());
        assert_eq!(reply.header("location"), Some(&leader[..]), "{method} {target}");
    }
    follower.end();
}

#[test]
fn status_and_cluster_agree_about_a_node_alone() {
    let server = Server::start(Config::default());
    let status = server.json("/v1/status");
    assert_eq!(status["id"], 1);
    assert_eq!(status["role"], "leader");
    assert_eq!(status["leader"], 1);
    assert_eq!(status["alarms"], serde_json::json!([]));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    for number in [
        "term",
        "commit_index",
        "applied_index",
        "revision",
        "last_log_index",
        "first_log_index",
        "log_size_bytes",
        "db_size_bytes",
        "db_live_bytes",
        "keys",
        "uptime_seconds",
    ] {
        assert!(status[number].is_u64(), "{number} in {status}");
    }
    let url = format!("http://{}", server.address);
    let cluster = server.json("/v1/cluster");
    assert_eq!(cluster["cluster_id"], status["cluster_id"]);
    assert_eq!((&cluster["node"], &cluster["leader"]), (&1.into(), &1.into()));
    let [member] = cluster["members"].as_array().expect("a list").as_slice() else {
        panic!("one member: {cluster}")
    };
    assert_eq!(member["url"], url);
    assert_eq!((&member["role"], &member["voter"]), (&"leader".into(), &true.into()));
    let leader = server.json("/v1/cluster/leader");
    assert_eq!(leader, serde_json::json!({"id": 1, "url": url, "term": status["term"]}));
}

#[test]
fn metrics_have_help_and_the_names_of_the_contract() {
    let server = Server::start(Config::default());
    let reply = server.ask("GET", "/metrics");
    assert_eq!(reply.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let text = String::from_utf8(reply.body).expect("text");
    for name in [
        "mmapd_raft_elections_started_total",
        "mmapd_raft_elections_won_total",
        "mmapd_raft_leader_changes_total",
        "mmapd_raft_role",
        "mmapd_raft_term",
        "mmapd_raft_has_leader",
        "mmapd_raft_commit_latency_seconds",
        "mmapd_raft_proposals_total",
        "mmapd_raft_commit_index",
        "mmapd_raft_applied_index",
        "mmapd_mmap_remaps_total",
        "mmapd_mmap_msyncs_total",
        "mmapd_mmap_msync_duration_seconds",
        "mmapd_mmap_msync_bytes_total",
        "mmapd_mmap_mapped_bytes",
        "mmapd_mmap_resident_bytes",
        "mmapd_log_batch_entries",
        "mmapd_db_size_bytes",
        "mmapd_db_live_bytes",
        "mmapd_db_checkpoint_duration_seconds",
        "mmapd_kv_keys",
        "mmapd_kv_revision",
        "mmapd_build_info",
    ] {
        assert!(text.contains(&format!("# HELP {name} ")), "no help for {name}\n{text}");
    }
    let series = |line: &&str| line.starts_with("mmapd_http_requests_total{");
    server.ask("PUT", "/v1/keys/never-a-label");
    let text = String::from_utf8(server.ask("GET", "/metrics").body).expect("text");
    assert!(text.lines().any(|line| series(&line) && line.contains("route=\"/v1/keys/{key}\"")));
    assert!(!text.contains("never-a-label"));
}

/// How many answers were counted under these labels.
fn counted(server: &Server, route: &str, method: &str, status: u16) -> u64 {
    let text = String::from_utf8(server.ask("GET", "/metrics").body).expect("text");
    let labels = format!("route=\"{route}\",method=\"{method}\",status=\"{status}\"");
    let series = format!("mmapd_http_requests_total{{{labels}}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0, |count| count.parse().expect("a number"))
}

/// Other tests count along, so it is only known that the numbers grow.
#[test]
fn requests_are_counted_by_method_and_under_a_route_that_is_there() {
    let server = Server::start(Config::default());
    for (method, path, route, label, status) in [
        ("PATCH", "/v1/keys/a", "/v1/keys/{key}", "PATCH", 415),
        ("PATCH", "/v1/cluster/members/77", "/v1/cluster/members/{id}", "PATCH", 400),
        ("GET", "/no/such/route", "unmatched", "GET", 404),
        ("PATCH", "/no-such-route-either", "unmatched", "PATCH", 404),
        ("BREW", "/v1/coffee", "unmatched", "other", 404),
        ("POST", "/v1/status", "unmatched", "POST", 405),
        ("BREW", "/v1/keys/a", "unmatched", "other", 405),
        ("DELETE", "/metrics", "unmatched", "DELETE", 405),
    ] {
        let before = counted(&server, route, label, status);
        assert_eq!(server.ask(method, path).status(), status, "{method} {path}");
        assert!(counted(&server, route, label, status) > before, "{method} {path}");
    }
    let text = String::from_utf8(server.ask("GET", "/metrics").body).expect("text");
    for label in ["no/such", "no-such", "coffee", "BREW"] {
        assert!(!text.contains(label), "{label}");
    }
}

#[test]
fn garbage_to_the_raft_routes_changes_no_term() {
    let server = Server::start(Config::default());
    let before = server.json("/v1/status");
    for route in ["append", "vote", "snapshot", "propose"] {
        for body in [&b""[..], b"garbage", &[0; 200], &[0xff; 5000]] {
            let mut connection = server.connect();
            let head = format!(
                "POST /v1/raft/{route} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            connection.send(&[head.as_bytes(), body].concat());
            let status = connection.reply(false).expect("an answer").status();
            let refused = matches!(status, 400 | 421);
            let empty_stream = route == "append" && body.is_empty() && status == 204;
            assert!(refused || empty_stream, "{route} with {} bytes: {status}", body.len());
        }
    }
    let after = server.json("/v1/status");
    for field in ["term", "role", "commit_index", "revision", "last_log_index"] {
        assert_eq!(before[field], after[field], "{field}");
    }
}

#[test]
fn the_pages_of_docs_load_only_their_own_files() {
    let server = Server::start(Config::default());
    let page = server.ask("GET", "/docs/");
    assert_eq!(page.status(), 200);
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.contains("default-src 'self'") && !policy.contains("http"));
    let text = String::from_utf8(page.body).expect("HTML");
    // The policy forbids scripts within the page.
    assert!(text.contains("swagger-initializer.js") && !text.contains("<script>"), "{text}");
    for part in text.split("src=\"").skip(1).chain(text.split("href=\"").skip(1)) {
        let file = part.split('"').next().unwrap_or_default().trim_start_matches("./");
        assert_eq!(server.ask("GET", &format!("/docs/{file}")).status(), 200, "{file}");
    }
    assert_eq!(server.ask("GET", "/docs").status(), 303);
}

#[test]
fn the_dashboard_loads_only_its_own_files() {
    let server = Server::start(Config::default());
    let mut todo = vec!["/ui".to_owned()];
    let mut seen = std::collections::BTreeSet::new();
    while let Some(path) = todo.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let reply = server.ask("GET", &path);
        assert_eq!(reply.status(), 200, "{path}");
        let (_, extension) = path.rsplit_once('.').unwrap_or(("", "html"));
        let kind = match extension {
            "html" => "text/html; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            _ => "image/svg+xml",
        };
        assert_eq!(reply.header("content-type"), Some(kind), "{path}");
        assert_eq!(reply.header("cache-control"), Some("no-cache"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"), "{path}");
        let policy = reply.header("content-security-policy").expect("a policy");
        for part in
            ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "base-uri 'none'"]
        {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{path}: {policy}");
        let tag = reply.header("etag").expect("a tag").to_owned();
        let mut connection = server.connect();
        let again = format!("GET {path} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\n\r\n");
        connection.send(again.as_bytes());
        let known = connection.reply(false).expect("an answer");
        assert_eq!((known.status(), known.header("etag")), (304, Some(tag.as_str())), "{path}");
        let text = String::from_utf8(reply.body).expect("text");
        let named = text.split("\"/ui/").skip(1).chain(text.split("from \"./").skip(1));
        todo.extend(
            named.map(|rest| format!("/ui/{}", rest.split('"').next().unwrap_or_default())),
        );
    }
    assert!(seen.len() > 10, "{seen:?}");
}

/// The size of the database is looked at now and then, so it is not said which write is the
/// first to be refused.
#[test]
fn a_full_database_still_reads_and_deletes() {
    let mut config = Config::default();
    config.storage.quota = 20 << 10;
    let server = Server::start(config);
    let put = |body: &str| {
        let length = body.len();
        let mut connection = server.connect();
        connection.send(
            format!("PUT /v1/keys/a HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        );
        connection.reply(false).expect("an answer")
    };
    let value = "x".repeat(30_000);
    assert_eq!(put(&value).status(), 201);
    let refused =
        (0..100_000).find_map(|_| Some(put(&value)).filter(|reply| reply.status() != 200));
    let refused = refused.expect("a full database refuses writes");
    assert_eq!(refused.status(), 507);
    let problem: serde_json::Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert_eq!(problem["code"], "quota-exceeded");
    assert!(problem["actual"].as_u64() >= problem["limit"].as_u64());
    assert_eq!(server.json("/v1/status")["alarms"], serde_json::json!(["quota"]));
    assert_eq!(server.ask("GET", "/v1/keys/a").body, value.as_bytes());
    assert_eq!(server.ask("DELETE", "/v1/keys/a").status(), 200);
    assert_eq!(server.ask("GET", "/v1/keys/a").status(), 404);
    assert_eq!(server.ask("GET", "/readyz").status(), 200);
}

/// Fill, delete, compact while somebody writes: the file gets short, and nothing is lost.
#[test]
fn a_compaction_gives_space_back_while_writes_go_on() {
    let mut config = Config::default();
    config.storage.checkpoint_interval = std::time::Duration::from_millis(100);
    // What is deleted is otherwise kept as the past.
    config.storage.history_bytes = 1 << 20;
    let server = Server::start(config);
    let value = vec![b'v'; 512 << 10];
    for n in 0..120 {
        assert_eq!(put(&mut server.connect(), &format!("big/{n}"), &value), 201);
    }
    let size = |server: &Server| server.json("/v1/status")["db_size_bytes"].as_u64();
    let full = 60 << 20;
    wait("a checkpoint that makes the file grow", || size(&server) >= Some(full));
    for n in 0..118 {
        assert_eq!(server.ask("DELETE", &format!("/v1/keys/big/{n}")).status(), 200);
    }
    let live = || server.json("/v1/status")["db_live_bytes"].as_u64();
    wait("the history lets go of what was deleted", || live() <= Some(16 << 20));
    let compact = || server.ask("POST", "/v1/admin/compact");
    let done = std::sync::atomic::AtomicBool::new(false);
    let (written, replies) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut connection, mut written) = (server.connect(), 0);
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let status = put(&mut connection, &format!("small/{written}"), b"here");
                assert_eq!(status, 201);
                written += 1;
            }
            written
        });
        let both: Vec<_> = (0..2).map(|_| scope.spawn(compact)).collect();
        let mut replies: Vec<_> =
            both.into_iter().map(|one| one.join().expect("it ends")).collect();
        replies.push(compact());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        (writer.join().expect("it writes"), replies)
    });
    for reply in &replies {
        let text = String::from_utf8_lossy(&reply.body);
        match reply.status() {
            200 => {}
            409 => assert!(text.contains("\"code\":\"conflict\""), "{text}"),
            other => panic!("{other}: {text}"),
        }
    }
    let first = replies.iter().find(|reply| reply.status() == 200).expect("one was first");
    let body: serde_json::Value = serde_json::from_slice(&first.body).expect("JSON");
    let number = |name: &str| body[name].as_u64().expect("a number");
    assert!(number("before_bytes") >= full && number("after_bytes") <= 32 << 20, "{body}");
    assert!(number("live_bytes") <= number("after_bytes") && number("revision") > 0, "{body}");
    assert!(body["duration_ms"].is_u64(), "{body}");
    wait("the status that says so", || size(&server) <= Some(32 << 20));
    assert!(written > 0);
    for n in 0..written {
        assert_eq!(server.ask("GET", &format!("/v1/keys/small/{n}")).body, b"here", "{n}");
    }
    for n in 0..120 {
        let reply = server.ask("GET", &format!("/v1/keys/big/{n}"));
        let found = (reply.status(), reply.body.len());
        assert_eq!(found.0, if n < 118 { 404 } else { 200 });
        assert!(n < 118 || found.1 == value.len());
    }
    let text = String::from_utf8(server.ask("GET", "/metrics").body).expect("text");
    assert!(text.contains("mmapd_db_compactions_total{outcome=\"done\"}"), "{text}");
}

/// Stores a value; answers the status.
fn put(connection: &mut Connection, key: &str, value: &[u8]) -> u16 {
    let head = format!(
        "PUT /v1/keys/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        value.len()
    );
    connection.send(head.as_bytes());
    connection.send(value);
    connection.reply(false).expect("an answer").status()
}

/// Asks until it is so.
fn wait(what: &str, so: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !so() {
        assert!(start.elapsed() < std::time::Duration::from_secs(60), "no {what}");
        std::thread::yield_now();
    }
}

/// Sends a request for the lock `jobs`; the answer comes when it comes.
fn ask_for_lock(server: &Server, wish: &str) -> Connection {
    let mut connection = server.connect();
    let length = wish.len();
    let head = format!("POST /v1/locks/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n");
    connection.send(format!("{head}\r\n{wish}").as_bytes());
    connection
}

/// The answer to it: status and body.
fn lock_answer(mut connection: Connection) -> (u16, serde_json::Value) {
    let reply = connection.reply(false).expect("an answer");
    (reply.status(), serde_json::from_slice(&reply.body).expect("JSON"))
}

/// Who waits for the lock `jobs`, in their order.
fn queue(server: &Server) -> Vec<String> {
    let lock = server.json("/v1/locks/jobs");
    let waiting = lock["waiting"].as_array().expect("a list");
    assert_eq!(lock["queue"], waiting.len());
    let owner = |it: &serde_json::Value| it["owner"].as_str().expect("an owner").to_owned();
    waiting.iter().map(owner).collect()
}

fn release(server: &Server, token: &serde_json::Value) {
    assert_eq!(server.ask("DELETE", &format!("/v1/locks/jobs?token={token}")).status(), 200);
}

#[test]
fn a_lock_goes_from_hand_to_hand_in_the_order_of_the_queue() {
    let server = Server::start(Config::default());
    let (status, first) = lock_answer(ask_for_lock(&server, r#"{"ttl":"60s","owner":"first"}"#));
    assert_eq!((status, &first["owner"]), (200, &"first".into()));
    let wish = |owner: &str| format!(r#"{{"ttl":"60s","owner":"{owner}","wait":"60s"}}"#);
    let second = ask_for_lock(&server, &wish("second"));
    wait("second in the queue", || queue(&server) == ["second"]);
    let third = ask_for_lock(&server, &wish("third"));
    wait("third in the queue", || queue(&server) == ["second", "third"]);

    let mut token = first["token"].clone();
    for (owner, waiting, left) in [("second", second, &["third"][..]), ("third", third, &[])] {
        release(&server, &token);
        let (status, held) = lock_answer(waiting);
        assert_eq!((status, &held["owner"]), (200, &owner.into()), "{held}");
        assert!(held["token"].as_u64() > token.as_u64(), "tokens go up");
        assert_eq!(held["ticket"], held["lease"], "the lease was made for it");
        assert_eq!(queue(&server), left);
        token = held["token"].clone();
    }
    release(&server, &token);
    assert_eq!(server.ask("GET", "/v1/locks/jobs").status(), 404, "free");
}

#[test]
fn who_hangs_up_leaves_the_queue() {
    let server = Server::start(Config::default());
    let (_, first) = lock_answer(ask_for_lock(&server, r#"{"ttl":"60s"}"#));
    let wish = |owner: &str| format!(r#"{{"ttl":"60s","owner":"{owner}","wait":"60s"}}"#);
    let closed = ask_for_lock(&server, &wish("closed"));
    wait("closed in the queue", || queue(&server) == ["closed"]);
    let mut finished = ask_for_lock(&server, &wish("finished"));
    wait("finished in the queue", || queue(&server).len() == 2);
    let stays = ask_for_lock(&server, &wish("stays"));
    wait("stays in the queue", || queue(&server).len() == 3);
    drop(closed);
    wait("that who closed is gone", || queue(&server) == ["finished", "stays"]);
    // Some answer comes to who only said that it sends no more.
    finished.finish();
    let (status, problem) = lock_answer(finished);
    assert_eq!((status, &problem["code"]), (409, &"conflict".into()), "{problem}");
    assert_eq!(queue(&server), ["stays"]);
    release(&server, &first["token"]);
    let (status, held) = lock_answer(stays);
    assert_eq!((status, &held["owner"]), (200, &"stays".into()), "{held}");
    // The leases that were made for the others went with their places.
    let leases = server.json("/v1/leases");
    assert_eq!(leases["leases"].as_array().map(Vec::len), Some(1), "{leases}");
}

#[test]
fn a_place_in_the_queue_ends_with_its_lease() {
    let server = Server::start(Config::default());
    let (_, first) = lock_answer(ask_for_lock(&server, r#"{"ttl":"60s"}"#));
    let mut connection = server.connect();
    let body = r#"{"ttl":"60s","id":77}"#;
    let head = format!("POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", body.len());
    connection.send(format!("{head}\r\n{body}").as_bytes());
    assert_eq!(connection.reply(false).expect("an answer").status(), 201);
    let waiting = ask_for_lock(&server, r#"{"lease":77,"owner":"w","wait":"60s"}"#);
    wait("w in the queue", || queue(&server) == ["w"]);
    // Under the same lease nobody else is asked for, and the place stays.
    let (status, _) = lock_answer(ask_for_lock(&server, r#"{"lease":77}"#));
    assert_eq!((status, queue(&server)), (409, vec!["w".to_owned()]));
    assert_eq!(server.ask("DELETE", "/v1/leases/77").status(), 200);
    let (status, problem) = lock_answer(waiting);
    assert_eq!(status, 409);
    let detail = problem["detail"].as_str().expect("a text");
    assert!(detail.contains("its lease ended"), "{detail}");
    assert_eq!(queue(&server), [""; 0]);
    release(&server, &first["token"]);
}

/// A lease that was made for the lock is kept alive while its client waits, though it is
/// shorter than the wait: others that are as long and that nobody keeps alive end meanwhile.
#[test]
fn waiting_keeps_the_lease_of_the_place_alive() {
    let mut config = Config::default();
    config.raft.tick = std::time::Duration::from_millis(10);
    let server = Server::start(config);
    let (_, first) = lock_answer(ask_for_lock(&server, r#"{"ttl":"60s"}"#));
    let waiting = ask_for_lock(&server, r#"{"ttl":"2s","owner":"w","wait":"60s"}"#);
    wait("w in the queue", || queue(&server) == ["w"]);
    for _ in 0..2 {
        let mut connection = server.connect();
        let body = r#"{"ttl":"2s","id":77}"#;
        let head = "POST /v1/leases HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n";
        connection.send(format!("{head}{body}").as_bytes());
        assert_eq!(connection.reply(false).expect("an answer").status(), 201);
        wait("an end of the other lease", || server.ask("GET", "/v1/leases/77").status() == 404);
    }
    assert_eq!(queue(&server), ["w"]);
    release(&server, &first["token"]);
    assert_eq!(lock_answer(waiting).0, 200);
}
