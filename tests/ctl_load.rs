//! `mmapctl` bench, torture, playground and debug, as real programs against real nodes.

mod support {
    pub(crate) mod process;
}

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use flate2::read::GzDecoder;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value as Json;
use support::process::{Cluster, wait};

fn mmapctl(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmapctl"));
    command.args(args).env_remove("MMAPD_ENDPOINTS").env_remove("MMAPD_TOKEN");
    command
}

fn run(args: &[&str]) -> Output {
    mmapctl(args).stdin(Stdio::null()).output().expect("mmapctl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Json {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", text(&output.stdout), text(&output.stderr))
    })
}

#[test]
fn bench_counts_and_leaves_no_keys() {
    let cluster = Cluster::start(1, "");
    let node = &cluster.nodes[0];
    node.client().put("mmapctl-bench/mine", "stays").expect("a write");
    let url = format!("http://127.0.0.1:{}", node.port);
    let args = ["--endpoint", &url, "-o", "json", "bench", "--operations", "60"];
    let more = ["--connections", "1,4", "--keys", "20", "--mix", "put,get,local-get,mixed"];
    let output = run(&[&args[..], &more[..]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let phases = json(&output)["phases"].as_array().expect("a list").clone();
    assert_eq!(phases.len(), 8);
    for phase in &phases {
        assert_eq!(phase["operations"], 60, "{phase}");
        assert_eq!(phase["errors"], serde_json::json!({}), "{phase}");
        let counts = phase["histogram"].as_array().expect("a list").iter();
        assert_eq!(counts.filter_map(|it| it["count"].as_u64()).sum::<u64>(), 60);
        assert!(phase["max_us"].as_u64() >= phase["p50_us"].as_u64());
    }
    assert_eq!(phases[0]["ratio"], 1.0);
    assert_eq!(node.client().list("").expect("a listing"), ["mmapctl-bench/mine"]);
}

#[test]
fn bench_says_that_nothing_succeeded() {
    let output = run(&[
        "--endpoint",
        "http://127.0.0.1:1",
        "-o",
        "json",
        "bench",
        "--operations",
        "3",
        "--connections",
        "1",
        "--mix",
        "put",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["phases"][0]["errors"]["unreachable"], 3);
}

/// A playground under way.
struct Play {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Play {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(more: &[&str]) -> Self {
        let mut child = mmapctl(&["playground", "--port", "0", "--mmapd"])
            .arg(env!("CARGO_BIN_EXE_mmapd"))
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("mmapctl runs");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("it is piped");
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut play = Self { child, stdin, lines, seen: Vec::new() };
        play.until("leads, term");
        play
    }

    /// The next line that holds this.
    fn until(&mut self, part: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(20));
            let line = line.unwrap_or_else(|_| panic!("no {part:?} after {:?}", self.seen));
            self.seen.push(line.clone());
            if line.contains(part) {
                return line;
            }
        }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("it is open");
        writeln!(stdin, "{line}").expect("it reads");
    }

    /// The words after this one, of each line that tells of a node.
    fn words(&self, after: &str) -> Vec<String> {
        let next = |line: &String| {
            let mut words = line.split_whitespace();
            words.find(|word| *word == after)?;
            words.next().map(str::to_owned)
        };
        self.seen.iter().filter(|line| line.contains("dashboard")).filter_map(next).collect()
    }

    fn pids(&self) -> Vec<Pid> {
        let pid = |word: String| Pid::from_raw(word.parse().expect("a number"));
        self.words("pid").into_iter().filter_map(pid).collect()
    }

    fn endpoints(&self) -> String {
        let line = self.seen.iter().find_map(|line| line.split_once("MMAPD_ENDPOINTS="));
        line.expect("it is printed").1.to_owned()
    }

    fn dir(&self) -> String {
        let line = self.seen.iter().find_map(|line| line.strip_prefix("data in "));
        line.expect("it is printed").trim_end_matches(", until the end").to_owned()
    }

    fn ended(&mut self) -> ExitStatus {
        wait("the playground ends", || self.child.try_wait().expect("our child"))
    }

    /// By which all must be gone.
    fn stop_by(mut self, signal: Signal) {
        let (pids, dir) = (self.pids(), self.dir());
        assert_eq!(pids.len(), 3, "{:?}", self.seen);
        assert!(pids.iter().all(|pid| test_kill_process(*pid).is_ok()), "they run");
        assert!(Path::new(&dir).is_dir());
        self.say("pause 2");
        self.until("node 2 paused");
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
        assert!(self.ended().success());
        for pid in pids {
            assert!(test_kill_process(pid).is_err(), "{pid:?} survived");
        }
        assert!(!Path::new(&dir).exists(), "{dir} is left behind");
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        // Of use after a failure only: it ends its nodes when it is told to.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

#[test]
fn a_playground_ends_its_nodes_on_sigterm() {
    Play::start().stop_by(Signal::TERM);
}

#[test]
fn a_playground_ends_its_nodes_on_sigint() {
    Play::start().stop_by(Signal::INT);
}

#[test]
fn a_playground_ends_its_nodes_on_sigquit() {
    Play::start().stop_by(Signal::QUIT);
}

#[test]
fn a_playground_goes_on_where_it_ended_on_other_ports() {
    let dir = tempfile::tempdir().expect("a directory");
    let folder = dir.path().to_str().expect("text");
    let mut play = Play::start_with(&["--dir", folder]);
    let first = play.endpoints();
    let put = ["--endpoint", &first, "put", "kept", "yes"];
    assert!(run(&put).status.success());
    play.say("quit");
    assert!(play.ended().success());

    let held = Vec::from_iter(first.split(',').filter_map(|url| {
        let port = url.rsplit(':').next()?.parse().ok()?;
        std::net::TcpListener::bind(("127.0.0.1", port)).ok()
    }));
    let mut play = Play::start_with(&["--dir", folder]);
    let second = play.endpoints();
    assert!(held.len() == 3 && first.split(',').all(|url| !second.contains(url)), "{second}");
    assert_eq!(run(&["--endpoint", &second, "get", "kept"]).stdout, b"yes");
    play.say("quit");
    assert!(play.ended().success());

    let output = run(&["playground", "--nodes", "5", "--port", "0", "--dir", folder]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("a cluster of 3"), "{}", text(&output.stderr));
    assert!(!dir.path().join("node4").exists(), "and changes nothing");
}

/// Names cost a record in every node, which would be measured too.
#[test]
fn bench_gives_its_writes_no_names() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (send, heads) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut head = String::new();
            while stream.read_line(&mut head).is_ok_and(|read| read > 2) {}
            if send.send(head.to_lowercase()).is_err() {
                return;
            }
        }
    });
    let args = ["--endpoint", &url, "--timeout", "200ms", "bench", "--operations", "1"];
    run(&[&args[..], &["--connections", "1", "--mix", "put"]].concat());
    let head = heads.recv_timeout(Duration::from_secs(1)).expect("it asked");
    assert!(head.starts_with("put /v1/keys/mmapctl-bench/"), "{head}");
    assert!(!head.contains("idempotency-key"), "{head}");
}

/// A node that hangs costs what one request costs, not that for every key.
#[test]
fn torture_leaves_a_node_that_does_not_answer() {
    let cluster = Cluster::start(3, "");
    let (leader, _) = cluster.leader_after(0);
    let hung = &cluster.nodes[(leader + 1) % 3];
    let urls = cluster.nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.port));
    let urls = urls.collect::<Vec<_>>().join(",");
    hung.signal(Signal::STOP);
    let mut child = mmapctl(&["--endpoint", &urls, "-o", "json", "torture"])
        .args(["--duration", "1", "--keys", "200"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mmapctl runs");
    let status = wait("the torture ends", || child.try_wait().expect("our child"));
    hung.signal(Signal::CONT);
    assert!(status.success());
}

#[test]
fn torture_ends_when_somebody_insists() {
    let cluster = Cluster::start(1, "");
    let node = &cluster.nodes[0];
    let url = format!("http://127.0.0.1:{}", node.port);
    let mut child = mmapctl(&["--endpoint", &url, "--timeout", "5m", "torture"])
        .args(["--duration", "300"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mmapctl runs");
    wait("the torture writes", || {
        let found = node.client().list("mmapctl-torture/").ok()?;
        (!found.is_empty()).then_some(())
    });
    node.signal(Signal::STOP);
    // The clients; then the removal of the keys, which hangs.
    wait("the torture ends", || {
        let _ = kill_process(Pid::from_child(&child), Signal::INT);
        child.try_wait().expect("our child")
    });
    node.signal(Signal::CONT);
    let mut said = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut said).expect("text");
    assert!(said.contains("left behind: interrupted"), "{said}");
}

#[test]
fn torture_is_clean_while_a_node_is_killed() {
    let mut play = Play::start();
    let endpoints = play.endpoints();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("history.jsonl");
    let name = file.to_str().expect("text");
    let torture = mmapctl(&["--endpoint", &endpoints, "-o", "json", "torture"])
        .args(["--duration", "6", "--clients", "5", "--keys", "4", "--history", name])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mmapctl runs");
    // Of the leader, as it is now, once there are writes.
    let port = endpoints.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    wait("the torture writes", || {
        let mut client = support::process::Client::new(port);
        (!client.list("mmapctl-torture/").ok()?.is_empty()).then_some(())
    });
    let leader = play.seen.iter().rev().find_map(|line| {
        line.contains("leads, term").then(|| line.split(' ').nth(1).map(str::to_owned))?
    });
    let leader = leader.expect("one leads");
    play.say(&format!("kill {leader}"));
    play.until("killed");
    play.until("leads, term");
    play.say(&format!("start {leader}"));
    play.until("started");
    let output = torture.wait_with_output().expect("our child");
    assert!(output.status.success(), "{} {}", text(&output.stdout), text(&output.stderr));
    let report = json(&output);
    assert_eq!(report["verdict"], "linearizable");
    assert!(report["outcomes"]["writes"].as_u64() > Some(0), "{report}");
    let again = run(&["-o", "json", "torture", "--check", name]);
    assert!(again.status.success(), "{}", text(&again.stderr));
    assert_eq!(json(&again)["operations"], report["operations"]);
    play.say("quit");
    assert!(play.ended().success());
}

#[test]
fn a_history_that_no_register_explains_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("bad.jsonl");
    let line = |rest: &str| format!("{{\"key\":\"a\",{rest}}}\n");
    let stale = [
        line(r#""action":"put","value":"old","outcome":"done","called":1,"returned":2"#),
        line(r#""action":"put","value":"new","outcome":"done","called":3,"returned":4"#),
        line(r#""action":"get","outcome":"read","seen":"old","called":5,"returned":6"#),
    ];
    fs::write(&file, stale.concat()).expect("a file");
    let name = file.to_str().expect("text");
    let output = run(&["torture", "--check", name]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.contains("key \"a\" is not linearizable"), "{said}");
    assert!(said.contains("verdict: violated"), "{said}");
    let fresh = line(r#""action":"get","outcome":"read","seen":"new","called":5,"returned":6"#);
    fs::write(&file, stale[..2].concat() + &fresh).expect("a file");
    assert!(run(&["torture", "--check", name]).status.success());
    // What cannot contradict anything shows nothing.
    let nothing = line(r#""action":"get","outcome":"read","called":5,"returned":6"#);
    let failed = line(r#""action":"put","value":"x","outcome":"failed","called":1,"returned":2"#);
    let missing = [
        (stale[..2].concat(), "no read"),
        (nothing.clone() + &failed, "no write"),
        (nothing, "no write"),
        (String::new(), "no write"),
    ];
    for (history, why) in missing {
        fs::write(&file, history).expect("a file");
        let output = run(&["torture", "--check", name]);
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.ends_with("verdict: undecided\n"), "{said}");
        assert!(text(&output.stderr).contains(why), "{}", text(&output.stderr));
        let output = run(&["-o", "json", "torture", "--check", name]);
        assert_eq!(output.status.code(), Some(1));
        let report = json(&output);
        assert_eq!(report["verdict"], "undecided", "{report}");
        assert!(report["why"].as_str().is_some_and(|said| said.contains(why)), "{report}");
    }
}

#[test]
fn a_debug_archive_has_all_pages_and_no_secrets() {
    let dir = tempfile::tempdir().expect("a directory");
    let tokens = dir.path().join("tokens.toml");
    let hash = mmapd::auth::Hash::of(b"planted-token");
    let all = format!(
        "anonymous = []\n[[roles]]\nname = \"all\"\n\
         rights = [{{ verbs = [\"read\", \"write\", \"observe\"] }}]\n\
         [[tokens]]\nname = \"me\"\nsha256 = \"{hash}\"\nroles = [\"all\"]\n"
    );
    fs::write(&tokens, all).expect("a file");
    let tuning = format!("[auth]\ntokens = {:?}\n", tokens.to_str().expect("text"));
    let cluster = Cluster::start(1, &tuning);
    let node = &cluster.nodes[0];
    let bearer = [("Authorization", "Bearer planted-token")];
    let reply = node.client().ask("PUT", "/v1/keys/planted-key", &bearer, b"planted-value");
    assert_eq!(reply.expect("an answer").status, 201);
    let out = dir.path().join("out.tar.gz");
    let up = format!("http://127.0.0.1:{}", node.port);
    let down = "http://user:planted-password@127.0.0.1:1";
    let args = ["--endpoint", &up, "--endpoint", down, "--token", "planted-token"];
    let name = out.to_str().expect("text");
    let output = run(&[&args[..], &["debug", "--interval", "100ms", "--out", name]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(&out).expect("it is there")));
    let mut found = Vec::new();
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a path").display().to_string();
        let mut body = String::new();
        entry.read_to_string(&mut body).expect("text");
        assert!(!body.contains("planted"), "{path}: {body}");
        found.push((path, body));
    }
    let body = |name: &str| {
        let name = format!("mmapd-debug/{name}");
        &found.iter().find(|(path, _)| *path == name).unwrap_or_else(|| panic!("no {name}")).1
    };
    for page in ["status.json", "cluster.json", "livez.txt", "readyz.txt", "metrics-1.txt"] {
        let had = body(&format!("node1/{page}"));
        assert!(!had.starts_with("error") && !had.starts_with("status 4"), "{page}: {had}");
        assert!(body(&format!("node2/{page}")).starts_with("error"), "{page}");
    }
    let metrics = body("node1/metrics-2.txt");
    assert!(metrics.contains("mmapd_"), "{metrics}");
    assert!(body("node1/openapi-version.json").contains("\"version\":\""));
    let manifest: Json = serde_json::from_str(body("MANIFEST.json")).expect("JSON");
    let listed = manifest["files"].as_array().expect("a list");
    assert_eq!(listed.len() + 1, found.len());
    assert!(listed.iter().all(|it| it["sha256"].as_str().is_some_and(|hex| hex.len() == 64)));
}
