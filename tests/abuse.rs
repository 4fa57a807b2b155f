//! Clients that are slow, silent, too many, too large or malformed, against real processes: they
//! lose their connection or get a refusal, and the others notice nothing.

#[path = "support/process.rs"]
mod process;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use process::{Client, Cluster, Node, wait};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long anybody who behaves waits, whatever others do.
const SOON: Duration = Duration::from_secs(2);
/// Longer than any limit here, and than closing takes.
const AT_LAST: Duration = Duration::from_secs(15);

/// As many descriptors as are allowed, for this process and those it starts.
fn more_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let most = Rlimit { current: limit.maximum, maximum: limit.maximum };
    setrlimit(Resource::Nofile, most).expect("up to what is allowed");
    limit.maximum.unwrap_or(u64::MAX)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).expect("somebody listens");
    stream.set_read_timeout(Some(AT_LAST)).expect("not zero");
    stream.set_write_timeout(Some(AT_LAST)).expect("not zero");
    stream.set_nodelay(true).expect("a socket");
    stream
}

/// All that comes until the connection ends, which it must.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("neither answered nor closed: {error}; {:?}", bytes.escape_ascii()),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Sends bytes, and answers with all that comes back until the server closes.
fn talk(addr: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connect(addr);
    // It may be refused before it was all sent.
    let _ = stream.write_all(bytes);
    rest(&mut stream)
}

fn status(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    code.unwrap_or_else(|| panic!("no answer: {answer:?}"))
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

fn never_panicked(node: &Node) {
    let log = fs::read_to_string(node.dir.join("stderr.log")).expect("a log");
    assert!(!log.contains("panicked"), "{log}");
}

/// A write that must be answered soon.
fn write_soon(client: &mut Client, number: u64) {
    let start = Instant::now();
    let reply = client.put(&format!("behaved/{}", number % 10), number.to_string());
    let reply = reply.expect("an answer in time");
    assert!(matches!(reply.status, 200 | 201), "{}: {}", reply.status, reply.text());
    assert!(start.elapsed() < SOON, "write {number} took {:?}", start.elapsed());
}

/// What a slow client does.
#[derive(Clone, Copy)]
enum Slow {
    Silent,
    Head,
    Body,
    Idle,
}

/// How long the server bore this client.
fn bore(addr: SocketAddr, slow: Slow, go: &AtomicBool) -> Duration {
    let mut stream = connect(addr);
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    let start = Instant::now();
    let head = "PUT /v1/keys/slow HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n";
    let (first, drip) = match slow {
        Slow::Silent => ("", ""),
        Slow::Head => ("GET /livez HTTP/1.1\r\nX: ", "x"),
        Slow::Body => (head, "x"),
        Slow::Idle => ("GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", ""),
    };
    let _ = stream.write_all(first.as_bytes());
    let mut scrap = [0; 4096];
    while start.elapsed() < AT_LAST && go.load(Ordering::Relaxed) {
        match stream.read(&mut scrap) {
            Ok(0) => return start.elapsed(),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stream.write_all(drip.as_bytes()).is_err() {
                    return start.elapsed();
                }
            }
            Err(_) => return start.elapsed(),
        }
    }
    start.elapsed()
}

#[test]
fn five_hundred_slow_clients_lose_their_connections_and_nobody_else_notices() {
    let tuning = "[http]\nheader_timeout = \"1s\"\nbody_timeout = \"1s\"\nidle_timeout = \"1s\"\n";
    let cluster = Cluster::start(1, tuning);
    let addr = cluster.nodes[0].addr;
    let (go, left) = (AtomicBool::new(true), AtomicU64::new(500));
    std::thread::scope(|scope| {
        let slow: Vec<_> = [Slow::Silent, Slow::Head, Slow::Body, Slow::Idle]
            .into_iter()
            .cycle()
            .take(500)
            .map(|kind| {
                let (go, left) = (&go, &left);
                scope.spawn(move || {
                    let took = bore(addr, kind, go);
                    left.fetch_sub(1, Ordering::Relaxed);
                    took
                })
            })
            .collect();
        let mut client = Client::to(addr).with_timeout(SOON);
        let mut number = 0;
        while left.load(Ordering::Relaxed) > 0 {
            write_soon(&mut client, number);
            number += 1;
        }
        for one in slow {
            let took = one.join().expect("no panic");
            // The limit is 1 s; who sends a body is read from for 2 s more, to see the answer.
            assert!(took >= Duration::from_millis(900), "closed after {took:?}");
            assert!(took < Duration::from_secs(8), "closed after {took:?}");
        }
        assert!(number > 10, "{number} writes");
    });
    never_panicked(&cluster.nodes[0]);
}

/// A `PUT` with these headers and body, and what an attacker wants to be taken for a request.
fn smuggler(headers: &str, body: &str) -> Vec<u8> {
    let hidden = "PUT /v1/keys/smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1";
    format!("PUT /v1/keys/outer HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}{hidden}").into_bytes()
}

#[test]
fn whatever_can_be_read_in_two_ways_gets_one_400_and_the_end() {
    let cluster = Cluster::start(1, "");
    let node = &cluster.nodes[0];
    let te = "Transfer-Encoding: chunked\r\n";
    let framings = [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("Content-Length: 0\r\nContent-Length: 5\r\n", "hello"),
        ("Content-Length: 5, 5\r\n", "hello"),
        ("Content-Length: +5\r\n", "hello"),
        ("Content-Length: -5\r\n", "hello"),
        ("Content-Length: 0x5\r\n", "hello"),
        ("Content-Length : 5\r\n", "hello"),
        ("Content-Length: 18446744073709551621\r\n", "hello"),
        ("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("Transfer-Encoding:\x0bchunked\r\n", "0\r\n\r\n"),
        ("X: y\r\n Transfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        ("X: y\rTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        (te, "10000000000000000\r\n\r\n0\r\n\r\n"),
        (te, "f0000000000000003\r\nabc\r\n0\r\n\r\n"),
        (te, "+5\r\nhello\r\n0\r\n\r\n"),
        (te, "0x5\r\nhello\r\n0\r\n\r\n"),
        (te, "5\nhello\r\n0\r\n\r\n"),
        (te, "5;\nhello\r\n0\r\n\r\n"),
        (te, "5\r\nhello0\r\n\r\n"),
        (te, "\r\n"),
    ];
    for (headers, body) in framings {
        let answer = talk(node.addr, &smuggler(headers, body));
        assert_eq!(status(&answer), 400, "{headers:?} {body:?}: {answer:?}");
        assert_eq!(answers(&answer), 1, "{headers:?} {body:?}: {answer:?}");
        // The same, arriving in two parts, behind a request that is in order.
        let mut stream = connect(node.addr);
        let bytes = smuggler(headers, body);
        let good = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(good).expect("it listens");
        stream.write_all(&bytes[..70]).expect("it listens");
        let _ = stream.write_all(&bytes[70..]);
        let answer = rest(&mut stream);
        assert!(answer.starts_with("HTTP/1.1 200"), "{headers:?}: {answer:?}");
        assert_eq!(answers(&answer), 2, "{headers:?} {body:?}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 2").count(), 1, "{headers:?} {body:?}: {answer:?}");
    }
    assert_eq!(node.client().read("smuggled").expect("an answer").status, 404);
    assert_eq!(node.client().read("outer").expect("an answer").status, 404);
    // And what is in order is taken: two requests in one go, one of them in chunks.
    let chunks = "5\r\nhello\r\n6;x=1\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n";
    let mut both = smuggler(te, chunks);
    both.extend(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = talk(node.addr, &both);
    assert_eq!(answer.matches("HTTP/1.1 20").count(), 3, "{answer:?}");
    assert_eq!(node.client().read("outer").expect("an answer").body, b"hello world");
    assert_eq!(node.client().read("smuggled").expect("an answer").body, b"1");
    never_panicked(node);
}

#[test]
fn ten_thousand_idle_connections_are_held_and_one_more_is_refused() {
    const KIB_EACH: u64 = 20;
    let count = 10_000.min(more_descriptors().saturating_sub(2_000));
    assert!(count >= 1_000, "too few descriptors to show anything: raise `ulimit -Hn`");
    let tuning = format!(
        "[limits]\nconnections = {count}\nconnections_per_address = 0\n\
         [http]\nheader_timeout = \"5m\"\nidle_timeout = \"5m\"\n"
    );
    let cluster = Cluster::start(1, &tuning);
    let node = &cluster.nodes[0];
    let mut writer = Client::to(node.addr).with_timeout(SOON);
    write_soon(&mut writer, 0);
    let before = node.anonymous_bytes();
    let mut idle = Vec::new();
    // One place is the writer's; those who looked whether it is ready may still hold theirs.
    let mut opened = 0;
    while opened + 1 < count {
        let mut stream = connect(node.addr);
        // Every tenth has said something before.
        if opened % 10 == 0 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").expect("it listens");
            let got = stream.read(&mut [0; 4096]).expect("an answer");
            assert!(got > 0, "connection {opened} was refused");
        }
        idle.push(stream);
        opened += 1;
        if opened % 500 == 0 {
            write_soon(&mut writer, opened);
        }
    }
    // Those that came last are accepted some time later; then all places are taken.
    wait("all places are taken", || {
        let answer = node.client().get("/v1/keys/behaved/0").ok()?;
        (answer.status == 429).then_some(())
    });
    let each = node.anonymous_bytes().saturating_sub(before) / count;
    assert!(each <= KIB_EACH << 10, "{each} bytes for each connection");
    for number in 0..50 {
        write_soon(&mut writer, number);
        let alive = node.client().with_timeout(SOON).get("/livez").expect("a spare place");
        assert_eq!(alive.status, 200);
    }
    // They are still there, and all are of use.
    for stream in idle.iter_mut().rev().step_by(999) {
        stream.write_all(b"GET /v1/keys/behaved/0 HTTP/1.1\r\nHost: x\r\n\r\n").expect("open");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
    drop(idle);
    wait("places are free again", || {
        let answer = node.client().get("/v1/keys/behaved/0").ok()?;
        (answer.status == 200).then_some(())
    });
    never_panicked(node);
}

#[test]
fn an_address_has_so_many_connections_and_no_more() {
    let cluster = Cluster::new(1, "[limits]\nconnections_per_address = 8\n");
    let mut cluster = cluster;
    cluster.start_all();
    let node = &cluster.nodes[0];
    let mut kept: Vec<Client> = Vec::new();
    // Those who looked whether it is ready may still count.
    wait("all eight places", || {
        let mut client = node.client();
        if client.get("/livez").is_ok() {
            kept.push(client);
        }
        (kept.len() == 8).then_some(())
    });
    for _ in 0..3 {
        let mut ninth = connect(node.addr);
        assert_eq!(rest(&mut ninth), "", "it is closed without a word");
    }
    let metrics = kept[0].get("/metrics").expect("it is open").text();
    let refused = metrics
        .lines()
        .find_map(|line| line.strip_prefix("mmapd_http_refused_connections_total "))
        .and_then(|number| number.parse::<u64>().ok());
    assert!(refused.is_some_and(|refused| refused >= 3), "{refused:?}");
    kept.pop();
    wait("the place that was given back", || node.client().get("/livez").ok());
}

#[test]
fn bodies_in_flight_have_a_limit_of_bytes_that_announcing_does_not_fill() {
    let tuning = "[limits]\nvalue = \"1MiB\"\ntxn_bytes = \"1MiB\"\nin_flight_bytes = \"1MiB\"\n";
    let cluster = Cluster::start(1, tuning);
    let node = &cluster.nodes[0];
    let head = "PUT /v1/keys/large HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\
                Connection: close\r\n\r\n";
    let announce = || {
        let mut stream = connect(node.addr);
        stream.write_all(head.as_bytes()).expect("it listens");
        stream
    };
    // Ten who announce ten times as much as may be, and send nothing, keep nobody out.
    let silent: Vec<TcpStream> = (0..10).map(|_| announce()).collect();
    let mut client = node.client();
    write_soon(&mut client, 0);
    let begin = || {
        let mut stream = announce();
        stream.write_all(&vec![b'x'; 1_000_000]).expect("it is read");
        stream.set_nonblocking(true).expect("a socket");
        stream
    };
    let (mut large, mut in_a_row) = (begin(), 0);
    // While it is still being read, it may lose against the other: then it is sent again.
    let refusal = wait("what is held counts", || {
        let reply = node.client().put("other", vec![b'y'; 100_000]).ok()?;
        in_a_row = if reply.status == 429 { in_a_row + 1 } else { 0 };
        if large.peek(&mut [0]).is_ok() {
            (large, in_a_row) = (begin(), 0);
        }
        (in_a_row == 3).then_some(reply)
    });
    large.set_nonblocking(false).expect("a socket");
    let problem = refusal.json();
    assert_eq!(
        (&problem["code"], &problem["outcome"]),
        (&"overloaded".into(), &"not_applied".into())
    );
    assert_eq!(problem["limit"], 1 << 20, "{problem}");
    assert!(problem["actual"].as_u64() > Some(1 << 20), "{problem}");
    assert_eq!(problem["retryable"], true);
    // What is small still fits, also in chunks.
    write_soon(&mut client, 1);
    large.write_all(&vec![b'x'; 48_576]).expect("it is read");
    assert_eq!(status(&rest(&mut large)), 201);
    assert_eq!(node.client().put("other", vec![b'y'; 100_000]).expect("an answer").status / 100, 2);
    drop(silent);
}

#[test]
fn a_batch_counts_what_it_has_not_written() {
    let tuning = "[limits]\nvalue = \"1MiB\"\ntxn_bytes = \"1MiB\"\nin_flight_bytes = \"1MiB\"\n";
    let cluster = Cluster::start(1, tuning);
    let node = &cluster.nodes[0];
    let head = "POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n";
    let begin = |bytes: usize| {
        let mut stream = connect(node.addr);
        stream.write_all(head.as_bytes()).expect("it listens");
        stream.write_all(&vec![b' '; bytes]).expect("it is read");
        stream
    };
    // No line of it has an end. A write that comes before it was read takes room from it, which
    // ends it: then another one is tried.
    let refused = || {
        let batch = begin(1_000_000);
        let reply = node.client().put("other", vec![b'y'; 100_000]).ok()?;
        (reply.status == 429).then_some(batch)
    };
    let batch = wait("what it holds counts", refused);
    drop(batch);
    let taken = || {
        let reply = node.client().put("other", vec![b'y'; 100_000]).ok()?;
        (reply.status / 100 == 2).then_some(())
    };
    wait("it is given back", taken);
    // More than there may be ends the batch. It may be refused before all is sent.
    let mut large = connect(node.addr);
    large.write_all(head.as_bytes()).expect("it listens");
    let _ = large.write_all(&vec![b' '; 1_500_000]);
    let mut answer = String::new();
    while !answer.contains("\"end\":true") && !answer.contains("HTTP/1.1 429") {
        let mut bytes = [0; 4096];
        let count = large.read(&mut bytes).expect("an answer");
        assert!(count > 0, "it ended: {answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(answer.contains("overloaded"), "{answer}");
    wait("it is given back again", taken);
    // What is written is not held any longer: in all it may be any amount.
    let mut line = format!("{{\"put\":{{\"key\":\"a\",\"value\":\"{}\"}}}}", "x".repeat(299_000));
    line.push_str(&" ".repeat(299_999 - line.len()));
    line.push('\n');
    let mut many = connect(node.addr);
    many.write_all(head.as_bytes()).expect("it listens");
    for _ in 0..10 {
        many.write_all(line.as_bytes()).expect("it is read");
    }
    let mut answer = String::new();
    while !answer.contains("\"end\":true") {
        let mut bytes = [0; 4096];
        let count = many.read(&mut bytes).expect("an answer");
        assert!(count > 0, "it ended: {answer}");
        answer.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
    assert!(answer.contains("{\"end\":true,\"lines\":10,\"applied\":10}"), "{answer}");
}

#[test]
fn who_takes_nothing_of_an_answer_loses_the_connection() {
    let tuning = "[limits]\nin_flight = 1\n[http]\nwrite_timeout = \"3s\"\nidle_timeout = \"5m\"\n";
    let cluster = Cluster::start(1, tuning);
    let node = &cluster.nodes[0];
    let value = vec![b'x'; 8 << 20];
    assert_eq!(node.client().put("k", &value).expect("an answer").status, 201);
    let get = "GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n\r\n";
    let begin = || {
        let mut stream = connect(node.addr);
        stream.write_all(get.as_bytes()).expect("it listens");
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).expect("an answer");
        assert_eq!(&begun, b"HTTP/1.1 200");
        stream
    };
    let is = |status| (node.client().read("none").ok()?.status == status).then_some(());
    let mut stalled = begin();
    wait("it keeps its place until it has its answer", || is(429));
    wait("it is cut off", || is(404));
    let mut taken = Vec::new();
    let end = stalled.read_to_end(&mut taken);
    assert!(taken.len() < value.len(), "all {} bytes came: {end:?}", taken.len());
    // Who is slow and takes something now and then is served, however long it takes in all.
    let mut slow = begin();
    let (mut piece, start) = (vec![0; 512 << 10], Instant::now());
    // The first bytes of the head are read already; what is left has at least so many pieces.
    for _ in 0..value.len() / piece.len() {
        slow.read_exact(&mut piece).expect("it goes on");
        process::stays(Duration::from_millis(300), "slow", || true);
    }
    assert!(start.elapsed() > Duration::from_secs(4), "it was not slow: {:?}", start.elapsed());
}

#[test]
fn an_answer_that_is_made_and_not_taken_is_given_up_too() {
    let tuning = "[limits]\nconnections = 1\n\
                  [http]\nwrite_timeout = \"1s\"\nidle_timeout = \"5m\"\nheader_timeout = \"5m\"\n";
    let cluster = Cluster::start(1, tuning);
    let node = &cluster.nodes[0];
    let is = |status| (node.client().read("k").ok()?.status == status).then_some(());
    wait("a write", || {
        (node.client().put("k", vec![b'x'; 60_000]).ok()?.status / 100 == 2).then_some(())
    });
    // Short values are copied, so the answers are made long before they are sent.
    let gets = "GET /v1/keys/k HTTP/1.1\r\nHost: x\r\n\r\n".repeat(300);
    let mut stalled = wait("the one place", || {
        let mut stream = connect(node.addr);
        stream.write_all(gets.as_bytes()).ok()?;
        stream.peek(&mut [0; 12]).ok()?;
        let mut begun = [0; 12];
        stream.read_exact(&mut begun).ok()?;
        (&begun == b"HTTP/1.1 200").then_some(stream)
    });
    wait("its place is taken", || is(429));
    wait("its place is free", || is(200));
    let mut rest = Vec::new();
    let end = stalled.read_to_end(&mut rest);
    assert!(rest.len() < 300 * 60_000, "all came: {end:?}");
}

#[test]
fn nodes_and_probes_are_let_in_when_clients_have_taken_all_places() {
    let cluster = Cluster::start(1, "[limits]\nconnections = 1\n");
    let node = &cluster.nodes[0];
    let kept = wait("the one place", || {
        let mut client = node.client();
        (client.read("k").ok()?.status == 404).then_some(client)
    });
    let ask = |request: &str| talk(node.addr, request.as_bytes());
    let get = |path: &str| ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert_eq!(status(&get("/v1/keys/k")), 429);
    assert_eq!(status(&get("/livez")), 200);
    let vote = "POST /v1/raft/vote HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\0\0\0\0";
    let answer = ask(vote);
    assert_eq!(status(&answer), 400, "it is read, and is no message: {answer}");
    drop(kept);
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).expect("31 bits") % bound
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[4]
    }
}

/// Requests in order, of which broken ones are made. None of them touches what is kept.
fn sound() -> Vec<Vec<u8>> {
    let body = |method: &str, target: &str, kind: &str, body: &str| {
        let length = body.len();
        format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    let json = "application/json";
    let mut all = vec![
        body("PUT", "/v1/keys/fuzz/a?ttl=30s", "text/plain", "value"),
        body("PATCH", "/v1/keys/fuzz/a", "application/merge-patch+json", r#"{"ttl":null}"#),
        body("POST", "/v1/leases", json, r#"{"ttl":"30s"}"#),
        body("POST", "/v1/leases/keepalive", json, r#"{"ids":[1,2]}"#),
        body("POST", "/v1/locks/fuzz", json, r#"{"ttl":"1s"}"#),
        body(
            "POST",
            "/v1/batch",
            "application/x-ndjson",
            "{\"put\":{\"key\":\"fuzz/b\",\"value\":\"1\"}}\n{\"delete\":{\"key\":\"fuzz/b\"}}\n",
        ),
        body("POST", "/v1/txn", json, r#"{"then":[{"put":{"key":"fuzz/c","value":"1"}}]}"#),
        body("POST", "/set/fuzz", "application/x-www-form-urlencoded", "value=%31"),
        body("POST", "/v1/raft/append", "application/octet-stream", "\0\0\0\x01garbage"),
        body("POST", "/v1/raft/vote", "application/octet-stream", "\0\0\0\x01garbage"),
        "PUT /v1/keys/fuzz/d HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\n\r\n"
            .to_owned(),
        "DELETE /v1/keys/fuzz/a HTTP/1.1\r\nHost: x\r\nIf-Match: \"3\", \"4\"\r\n\r\n".to_owned(),
    ];
    for target in [
        "/v1/keys/fuzz/a?consistency=stale&revision=1",
        "/v1/keys?prefix=fuzz/&limit=3&keys_only=true",
        "/v1/history/fuzz/a?limit=1",
        "/v1/status",
        "/v1/cluster",
        "/metrics",
        "/openapi.json",
        "/ui/api.js",
        "/livez",
    ] {
        all.push(format!(
            "GET {target} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1\r\nPrefer: wait=0\r\n\
             If-None-Match: \"1\"\r\nAccept: application/json\r\n\r\n"
        ));
    }
    all.into_iter().map(String::into_bytes).collect()
}

fn mutate(random: &mut Random, sound: &[Vec<u8>]) -> Vec<u8> {
    const PIECES: [&[u8]; 16] = [
        b"\r\n",
        b"\r\n\r\n",
        b"\0",
        b"%00",
        b"%",
        b"%ff",
        b"..",
        b"//",
        b"\xff\xfe",
        b"\"",
        b"{",
        b"[[[[[[[[",
        b"99999999999999999999",
        b"-1",
        b"\r\nContent-Length: 3",
        b";",
    ];
    let mut bytes = sound[random.below(sound.len())].clone();
    for _ in 0..1 + random.below(6) {
        let at = random.below(bytes.len().max(1)).min(bytes.len());
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] = random.byte(),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            2 => {
                let piece = PIECES[random.below(PIECES.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
            3 => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let other = &sound[random.below(sound.len())];
                let from = random.below(other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ => {
                let count = random.below(100);
                let byte = random.byte();
                bytes.splice(at..at, std::iter::repeat_n(byte, count));
            }
        }
    }
    bytes
}

#[test]
fn twenty_thousand_broken_requests_do_no_harm() {
    const REQUESTS: u64 = 20_000;
    const THREADS: u64 = 8;
    let cluster = Cluster::start(1, "[http]\nheader_timeout = \"2s\"\nbody_timeout = \"2s\"\n");
    let node = &cluster.nodes[0];
    let mut client = node.client();
    for number in 0..50 {
        assert_eq!(client.put(&format!("kept/{number:02}"), "1").expect("an answer").status, 201);
    }
    let kept = client.list("kept/").expect("a listing");
    let (sound, addr) = (sound(), node.addr);
    let (answered, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (sound, answered, refused) = (&sound, &answered, &refused);
            scope.spawn(move || {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 + thread);
                for number in 0..REQUESTS / THREADS {
                    let bytes = mutate(&mut random, sound);
                    let mut stream = connect(addr);
                    let _ = stream.write_all(&bytes);
                    let _ = stream.shutdown(Shutdown::Write);
                    let answer = rest(&mut stream);
                    if answer.is_empty() {
                        continue;
                    }
                    answered.fetch_add(1, Ordering::Relaxed);
                    let status = status(&answer);
                    let about =
                        || format!("{thread}/{number}: {:?}", bytes.escape_ascii().to_string());
                    assert!(status < 500 || status == 503, "{answer:?} to {}", about());
                    if status >= 400 {
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    assert!(answered > REQUESTS / 2, "only {answered} were answered");
    assert!(refused > REQUESTS / 10 && refused < answered, "{refused} of {answered} refused");
    assert_eq!(client.list("kept/").expect("a listing"), kept);
    assert_eq!(client.get("/readyz").expect("an answer").status, 200);
    never_panicked(node);
}

#[test]
fn what_is_too_large_is_refused_before_it_costs_memory() {
    let cluster = Cluster::start(1, "[limits]\nvalue = \"1MiB\"\nheader_bytes = \"16KiB\"\n");
    let node = &cluster.nodes[0];
    node.client().put("first", "1").expect("an answer");
    let before = node.anonymous_bytes();
    let put = |key: &str, headers: &str| {
        format!("PUT /v1/keys/{key} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes()
    };
    let terabyte = talk(node.addr, &put("a", "Content-Length: 1099511627776\r\n"));
    assert_eq!(status(&terabyte), 413, "{terabyte}");
    // Chunks without an end: sent until nobody takes them.
    let mut stream = connect(node.addr);
    stream.write_all(&put("a", "Transfer-Encoding: chunked\r\n")).expect("it listens");
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x10000], b"\r\n"].concat();
    let start = Instant::now();
    let taken = std::iter::from_fn(|| stream.write_all(&chunk).ok())
        .take_while(|()| start.elapsed() < AT_LAST)
        .count();
    assert!(start.elapsed() < AT_LAST, "{taken} chunks of 64 KiB were taken, and no end");
    let answer = rest(&mut stream);
    assert!(answer.is_empty() || status(&answer) == 413, "{answer}");
    let long = "x".repeat(20 << 10);
    let large = talk(
        node.addr,
        &put("a", &format!("X: {long}\r\nContent-Length: 0\r\nConnection: close\r\n")),
    );
    assert_eq!(status(&large), 431);
    let mut many = String::from("Connection: close\r\nContent-Length: 0\r\n");
    for number in 0..101 {
        write!(many, "X-{number}: 1\r\n").expect("a string grows");
    }
    assert_eq!(status(&talk(node.addr, &put("a", &many))), 431);
    let key = "k".repeat(5000);
    let close = "Content-Length: 0\r\nConnection: close\r\n";
    assert_eq!(status(&talk(node.addr, &put(&key, close))), 414);
    // What is packed stays packed.
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..512 {
        packer.write_all(&[0; 1 << 20]).expect("memory");
    }
    let mut bomb = packer.finish().expect("memory");
    bomb.truncate(1 << 20);
    let mut client = node.client();
    let reply = client.ask("PUT", "/v1/keys/bomb", &[("Content-Encoding", "gzip")], &bomb);
    let status = reply.expect("an answer").status;
    assert!(matches!(status, 201 | 415), "{status}");
    if status == 201 {
        assert!(client.read("bomb").expect("an answer").body == bomb, "the same bytes");
    }
    assert_eq!(client.read("a").expect("an answer").status, 404);
    let grown = node.anonymous_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    never_panicked(node);
}

/// Every file and directory below, as paths.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut open = vec![dir.to_owned()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path.clone());
            }
            all.insert(path.display().to_string());
        }
    }
    all
}

const KEYS: [&str; 40] = [
    ".",
    "..",
    "../x",
    "../../x",
    "../../../../etc/passwd",
    "a/../b",
    "a/./b",
    "./a",
    "a/..",
    "%2e",
    "%2e%2e",
    "%2e%2e/x",
    "%2E%2E%2Fx",
    "..%2fx",
    "..%2f..%2fx",
    "%2f",
    "%2Fetc%2Fpasswd",
    "/",
    "//",
    "//a",
    "a//b",
    "a%2Fb",
    "a/b",
    "%252e",
    "%252e%252e%252fx",
    "%00",
    "a%00b",
    "a%00",
    "%c0%ae%c0%ae",
    "%c0%af",
    "%e0%80%ae",
    "%f0%80%80%ae",
    "..%5cx",
    "..\\x",
    "%ff",
    "db.mmapd",
    "..;/x",
    "%zz",
    "%",
    "a%2",
];

#[test]
fn a_key_is_bytes_and_never_a_path() {
    let cluster = Cluster::start(1, "");
    let node = &cluster.nodes[0];
    node.client().put("first", "1").expect("an answer");
    let around = node.dir.parent().expect("the directory of the cluster");
    let before = tree(around);
    let mut stored = Vec::new();
    for (number, key) in KEYS.into_iter().enumerate() {
        let value = format!("value {number}");
        let head = format!(
            "PUT /v1/keys/{key} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            value.len()
        );
        match status(&talk(node.addr, (head + &value).as_bytes())) {
            // New, each of them: no two are the same key, but for those that say the same bytes.
            201 => stored.push((key, value)),
            200 => {
                stored.retain(|(other, _)| once(other) != once(key));
                stored.push((key, value));
            }
            400 => {}
            other => panic!("{key:?}: {other}"),
        }
    }
    let distinct: BTreeSet<Vec<u8>> = stored.iter().map(|(key, _)| once(key)).collect();
    assert_eq!(distinct.len(), stored.len(), "each under its own bytes");
    assert!(stored.len() >= 25, "{stored:?}");
    for (key, value) in &stored {
        let reply = node.client().read(key).expect("an answer");
        assert_eq!((reply.status, reply.text().as_str()), (200, value.as_str()), "{key:?}");
    }
    assert_eq!(tree(around), before, "no file was made");
}

#[test]
fn files_are_their_owners_alone() {
    let cluster = Cluster::start(1, "");
    let node = &cluster.nodes[0];
    node.client().put("first", "1").expect("an answer");
    let files = tree(&node.dir);
    let folder = |name: &str| {
        let meta = fs::metadata(node.dir.join(name)).expect("it is there");
        meta.permissions().mode() & 0o777
    };
    assert_eq!(folder("log"), 0o700);
    let ours = |path: &&String| path.contains("/log/") || path.contains("db.mmapd");
    assert!(files.iter().filter(ours).count() >= 2, "{files:?}");
    for path in files.iter().filter(ours) {
        let mode = fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{path}");
    }
}

/// `%XX` read once; a sound key.
fn once(key: &str) -> Vec<u8> {
    let (mut bytes, mut out) = (key.bytes(), Vec::new());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next(), bytes.next()].map(|digit| digit.expect("two digits"));
        let digits = std::str::from_utf8(&digits).expect("ASCII").to_owned();
        out.push(u8::from_str_radix(&digits, 16).expect("digits"));
    }
    out
}

#[test]
fn a_member_is_a_host_and_a_port_and_nothing_else() {
    let cluster = Cluster::start(1, "");
    let node = &cluster.nodes[0];
    let mut client = node.client();
    for url in [
        "http://169.254.169.254:80",
        "https://169.254.169.254:443",
        "http://2852039166:80",
        "http://0xa9fea9fe:80",
        "http://0251.0376.0251.0376:80",
        "http://169.254.169.254.:80",
        "http://[fe80::1]:3001",
        "http://[febf::1]:3001",
        "http://[::ffff:169.254.169.254]:80",
        "http://[::ffff:a9fe:a9fe]:80",
        "file:///etc/passwd",
        "unix:/run/docker.sock",
        "http+unix://%2frun%2fdocker.sock:80",
        "gopher://10.0.0.1:70",
        "http://user@10.0.0.1:3001",
        "http://user:secret@10.0.0.1:3001",
        "http://10.0.0.1:3001/latest/meta-data",
        "http://10.0.0.1:3001?x=1",
        "http://10.0.0.1:3001#x",
        "http://10.0.0.1",
        "http://10.0.0.1:3001\r\nX: y",
        "http://:3001",
        "10.0.0.1:3001",
        "",
    ] {
        let body = serde_json::json!({"id": 9, "url": url}).to_string();
        let json = [("Content-Type", "application/json")];
        let reply = client.ask("POST", "/v1/cluster/members", &json, body.as_bytes());
        let reply = reply.expect("an answer");
        assert_eq!(reply.status, 400, "{url:?}: {}", reply.text());
        let detail = reply.json()["detail"].as_str().unwrap_or_default().to_owned();
        assert!(detail.starts_with("url"), "{url:?}: {detail}");
    }
    let members = client.get("/v1/cluster").expect("an answer").json();
    assert_eq!(members["members"].as_array().map(Vec::len), Some(1), "{members}");
}
