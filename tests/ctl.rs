//! `mmapctl`, as a real program against real nodes: what it prints, and how it ends.

mod support {
    pub(crate) mod process;
}

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value as Json, json};
use support::process::{Cluster, wait};

/// The exit codes of `mmapctl --help`.
const FAILURE: Option<i32> = Some(1);
const USAGE: Option<i32> = Some(2);
const NOT_FOUND: Option<i32> = Some(3);
const PRECONDITION: Option<i32> = Some(4);
const UNAVAILABLE: Option<i32> = Some(5);

struct Ctl {
    endpoints: Vec<String>,
}

impl Ctl {
    fn of(cluster: &Cluster) -> Self {
        let url = |port| format!("http://127.0.0.1:{port}");
        Self { endpoints: cluster.nodes.iter().map(|node| url(node.port)).collect() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mmapctl"));
        command.args(args).env("MMAPD_ENDPOINTS", self.endpoints.join(","));
        command.env_remove("MMAPD_TOKEN").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("mmapctl runs")
    }

    /// What it prints when it ends well.
    fn says(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn json(&self, args: &[&str]) -> Json {
        let text = self.says(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn json_lines(&self, args: &[&str]) -> Vec<Json> {
        let text = self.says(&[args, &["-o", "json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
    }

    /// How it ends, and that it says why on standard error and nothing on standard output.
    fn fails(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.run(args);
        assert_eq!(text(&output.stdout), "", "{args:?}");
        (output.status.code(), text(&output.stderr))
    }

    fn with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mmapctl runs");
        child.stdin.take().expect("it has an input").write_all(input).expect("it reads");
        child.wait_with_output().expect("it ends")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn keys_come_and_go() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    assert!(ctl.says(&["put", "color", "blue"]).starts_with("created at revision "));
    assert_eq!(ctl.says(&["get", "color"]), "blue");
    let again = ctl.json(&["put", "color", "green", "--prev"]);
    assert_eq!((&again["created"], &again["version"]), (&json!(false), &json!(2)));
    assert_eq!(again["prev"]["value"], "blue");
    let entry = ctl.json(&["get", "color"]);
    assert_eq!((&entry["key"], &entry["value"]), (&json!("color"), &json!("green")));
    assert_eq!(entry["mod_revision"], again["revision"]);
    let first = entry["create_revision"].as_u64().expect("a revision").to_string();
    assert_eq!(ctl.says(&["get", "color", "--revision", &first]), "blue");

    // Bytes that are no text, in and out.
    let bytes: Vec<u8> = (0..=255).cycle().take(70_000).collect();
    assert!(ctl.with_input(&["put", "bytes", "--content-type", "x/y"], &bytes).status.success());
    assert_eq!(ctl.run(&["get", "bytes", "-o", "raw"]).stdout, bytes);
    let shown = ctl.json(&["get", "bytes"]);
    assert_eq!((&shown["encoding"], &shown["size"]), (&json!("base64"), &json!(70_000)));
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("value");
    fs::write(&file, &bytes[..9]).expect("a file");
    ctl.says(&["put", "from-file", "--file", file.to_str().expect("text")]);
    assert_eq!(ctl.run(&["get", "from-file"]).stdout, &bytes[..9]);

    // Conditions.
    let (code, why) = ctl.fails(&["put", "color", "red", "--if-absent"]);
    assert_eq!(code, PRECONDITION, "{why}");
    assert!(why.starts_with("mmapctl: precondition-failed (412)"), "{why}");
    assert_eq!(ctl.fails(&["put", "none", "x", "--if-exists"]).0, PRECONDITION);
    assert_eq!(ctl.fails(&["put", "color", "x", "--if-revision", "1000000"]).0, PRECONDITION);
    let at = again["revision"].to_string();
    ctl.says(&["put", "color", "red", "--if-revision", &at]);

    // What is not there.
    assert_eq!(
        ctl.fails(&["get", "none"]),
        (NOT_FOUND, "mmapctl: there is no key \"none\"\n".into())
    );
    assert_eq!(ctl.fails(&["del", "none"]).0, NOT_FOUND);
    assert_eq!(ctl.fails(&["touch", "none", "--ttl", "5s"]).0, NOT_FOUND);

    // Time to live.
    ctl.says(&["put", "short", "x", "--ttl", "1h"]);
    assert_eq!(ctl.says(&["touch", "short", "--ttl", "2h"]), "time to live 2h\n");
    assert_eq!(ctl.says(&["touch", "short", "--keep"]), "time to live -\n");

    let past = ctl.json(&["history", "color", "--limit", "2"]);
    let values = |index: usize| past["changes"][index]["value"].clone();
    assert_eq!((values(0), values(1)), (json!("red"), json!("green")));
    let table = ctl.says(&["history", "color"]);
    assert!(table.starts_with("REVISION  CHANGE  VERSION  VALUE\n"), "{table}");

    assert!(ctl.says(&["del", "color"]).starts_with("1 removed"));
    assert_eq!(ctl.json(&["history", "color"])["changes"][0]["type"], "delete");
    assert_eq!(ctl.fails(&["del", "--prefix", ""]).0, USAGE);
    assert_eq!(ctl.json(&["del", "--range", "a", "c"])["deleted"], 1);
    assert_eq!(ctl.json(&["del", "--all"])["deleted"], 2);
}

#[test]
fn many_keys_are_listed_and_followed() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    for key in ["a/1", "a/2", "a/b/3", "z"] {
        ctl.says(&["put", key, &format!("value of {key}\x1b[2J")]);
    }
    assert_eq!(ctl.says(&["ls", "-o", "raw"]), "a/1\na/2\na/b/3\nz\n");
    assert_eq!(ctl.says(&["ls", "--count", "a/"]), "3\n");
    assert_eq!(ctl.says(&["ls", "--reverse", "--limit", "2", "-o", "raw"]), "z\na/b/3\n");
    assert_eq!(ctl.says(&["ls", "-d", "/", "a/", "-o", "raw"]), "a/1\na/2\na/b/\n");
    let lines = ctl.json_lines(&["ls", "a/", "--values"]);
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["value"], "value of a/1\x1b[2J");
    let table = ctl.says(&["ls", "--values", "z"]);
    assert!(table.starts_with("KEY  REVISION  VERSION  SIZE"), "{table}");
    assert!(table.contains("\\u{1b}[2J") && !table.contains('\x1b'), "{table}");
    assert_eq!(ctl.says(&["ls", "nothing", "-o", "json"]), "");

    // A table longer than what is held at a time.
    let rows: String = (0..2500).map(|key| format!("put many/{key:04} x\n")).collect();
    for lines in rows.lines().collect::<Vec<_>>().chunks(500) {
        let done = ctl.with_input(&["txn"], lines.join("\n").as_bytes());
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    let table = ctl.says(&["ls", "many/"]);
    assert_eq!(table.lines().filter(|line| line.starts_with("many/")).count(), 2500);
    assert!(table.starts_with("KEY"), "{table}");
    assert_eq!(table.lines().count(), 2501, "the headings once, and no line without a key");

    let revision = ctl.json(&["put", "w/0", "before"])["revision"].to_string();
    ctl.says(&["put", "w/1", "one"]);
    ctl.says(&["put", "other", "x"]);
    ctl.says(&["del", "w/1"]);
    let seen = ctl.json_lines(&["watch", "w/", "--after", &revision, "-n", "2", "--prev"]);
    assert_eq!(seen[0]["changes"][0]["value"], "one");
    assert_eq!(seen[1]["changes"][0]["type"], "delete");
    assert_eq!(seen[1]["changes"][0]["prev"]["value"], "one");
    let said = ctl.says(&["watch", "w/", "--after", &revision, "-n", "2"]);
    assert!(said.contains(" put w/1 one\n") && said.ends_with(" delete w/1\n"), "{said}");
}

#[test]
fn transactions_leases_and_locks() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    ctl.says(&["put", "state", "idle"]);
    let args = ["txn", "if value state = idle", "put state 'very busy'", "else", "get state"];
    let done = ctl.json(&args);
    assert_eq!(done["succeeded"], true, "{done}");
    assert_eq!(ctl.says(&["get", "state"]), "very busy");
    let said = ctl.says(&args);
    assert!(said.starts_with("they do not all hold, revision "), "{said}");
    assert!(said.ends_with("get: state very busy\n"), "{said}");
    let checked = ctl.run(&[&args[..], &["--check"]].concat());
    assert_eq!(checked.status.code(), PRECONDITION);
    let (code, why) = ctl.fails(&["txn", "if value state ~ idle"]);
    assert_eq!(code, USAGE);
    assert!(why.contains("line 1"), "{why}");
    assert_eq!(ctl.fails(&["txn", "put 'state"]).0, USAGE);

    let lease = ctl.says(&["lease", "grant", "1h"]);
    let lease = lease.trim();
    ctl.says(&["put", "worker/1", "here", "--lease", lease]);
    let shown = ctl.json(&["lease", "show", lease]);
    assert_eq!((&shown["ttl"], &shown["keys"]), (&json!("1h"), &json!(1)));
    assert_eq!(shown["attached"][0]["key"], "worker/1");
    assert_eq!(ctl.json_lines(&["lease", "ls"]).len(), 1);
    ctl.says(&["lease", "keepalive", lease]);
    assert_eq!(ctl.says(&["lease", "revoke", lease]), "1 keys removed\n");
    assert_eq!(ctl.fails(&["get", "worker/1"]).0, NOT_FOUND);
    assert_eq!(ctl.run(&["lease", "keepalive", lease]).status.code(), NOT_FOUND);
    assert_eq!(ctl.fails(&["lease", "show", lease]).0, NOT_FOUND);

    let lock = ctl.json(&["lock", "acquire", "jobs", "--owner", "me"]);
    let token = lock["token"].to_string();
    let fence = format!("jobs:{token}");
    ctl.says(&["put", "jobs/last", "1", "--fence", &fence]);
    assert_eq!(ctl.json(&["lock", "show", "jobs"])["holder"]["owner"], "me");
    assert_eq!(ctl.json_lines(&["lock", "ls"])[0]["name"], "jobs");
    let (code, why) = ctl.fails(&["lock", "run", "jobs", "--wait", "1s", "--", "true"]);
    assert_eq!(code, PRECONDITION, "{why}");
    ctl.says(&["lock", "release", "jobs", &token]);
    assert_eq!(ctl.fails(&["lock", "show", "jobs"]).0, NOT_FOUND);
    assert_eq!(ctl.fails(&["put", "jobs/last", "2", "--fence", &fence]).0, PRECONDITION);

    // The command has the token, its exit code is ours, and the lock is free afterwards.
    let mmapctl = env!("CARGO_BIN_EXE_mmapctl");
    let script = format!("{mmapctl} put jobs/last 3 --fence \"$MMAPD_FENCE\" && exit 7");
    let ran = ctl.run(&["lock", "run", "jobs", "--", "sh", "-c", &script]);
    assert_eq!(ran.status.code(), Some(7), "{}", text(&ran.stderr));
    assert_eq!(ctl.says(&["get", "jobs/last"]), "3");
    assert_eq!(ctl.fails(&["lock", "show", "jobs"]).0, NOT_FOUND);
    assert_eq!(ctl.fails(&["lock", "run", "jobs", "--", "/no/such/program"]).0, FAILURE);
    assert_eq!(ctl.says(&["lease", "ls", "-o", "json"]), "");

    // Told to end, it tells its command, which may take its time under the lock.
    let dir = tempfile::tempdir().expect("a folder");
    let began = dir.path().join("began");
    let script = format!(
        "trap '{mmapctl} put jobs/last 4 --fence \"$MMAPD_FENCE\"; exit 9' TERM
         touch {}; while :; do sleep 0.05; done",
        began.display()
    );
    let mut child =
        ctl.command(&["lock", "run", "jobs", "--", "sh", "-c", &script]).spawn().expect("it runs");
    wait("the command to run", || began.exists().then_some(()));
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::TERM).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(9));
    assert_eq!(ctl.says(&["get", "jobs/last"]), "4");
    assert_eq!(ctl.fails(&["lock", "show", "jobs"]).0, NOT_FOUND);
}

#[test]
fn lists_of_several_pages_are_one_table() {
    let cluster = Cluster::start(1, "[limits]\nlist_items = 2\n");
    let ctl = Ctl::of(&cluster);
    for name in ["one", "two", "three", "four", "five"] {
        ctl.says(&["lock", "acquire", name, "--ttl", "1h"]);
        ctl.says(&["put", name, "x"]);
    }
    for (args, head) in
        [(&["lease", "ls"][..], "LEASE"), (&["lock", "ls"], "LOCK"), (&["ls"], "KEY")]
    {
        let table = ctl.says(args);
        assert!(table.starts_with(head), "{table}");
        assert_eq!(table.lines().count(), 6, "{table}");
        assert!(table.lines().all(|line| !line.trim().is_empty()), "{table}");
    }
    assert_eq!(ctl.says(&["lock", "ls", "-o", "json"]).lines().count(), 5);
}

/// `lock run` of a script, once it has begun; it has a folder to say so.
fn under_lock(ctl: &Ctl, dir: &Path, options: &[&str], script: &str) -> Child {
    let began = dir.join("began");
    let script = format!("cd {}; {script}", dir.display());
    let args = [&["lock", "run", "jobs"], options, &["--", "sh", "-c", &script]].concat();
    // No pipe: a command that is wrongly left behind would keep it open.
    let said = fs::File::create(dir.join("said")).expect("a file");
    let child = ctl.command(&args).stderr(said).spawn().expect("it runs");
    wait("the command to run", || began.exists().then_some(()));
    fs::remove_file(began).expect("it is there");
    child
}

/// How it ended, and what it said.
fn ended(mut child: Child, dir: &Path) -> (Option<i32>, String) {
    let status = wait("it ends", || child.try_wait().expect("our child"));
    (status.code(), fs::read_to_string(dir.join("said")).expect("text"))
}

/// Does it run? What ended, and nobody has waited for, does not.
fn runs(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

#[test]
fn who_loses_a_lock_is_ended_and_told() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    let dir = tempfile::tempdir().expect("a folder");

    // Given back by somebody else who knows the token, while the lease lives on.
    let script = "sleep 1000 & echo $! > pid; touch began; wait";
    let child = under_lock(&ctl, dir.path(), &["--ttl", "1s"], script);
    let pid = fs::read_to_string(dir.path().join("pid")).expect("a process id");
    assert!(runs(pid.trim()));
    let token = ctl.json(&["lock", "show", "jobs"])["holder"]["token"].to_string();
    ctl.says(&["lock", "release", "jobs", &token]);
    let (code, said) = ended(child, dir.path());
    assert_eq!(code, UNAVAILABLE, "{said}");
    assert!(said.contains("the lock is lost"), "{said}");
    wait("what the command started is ended too", || (!runs(pid.trim())).then_some(()));

    // The lease is ended.
    let child = under_lock(&ctl, dir.path(), &["--ttl", "1s"], "touch began; sleep 1000");
    let lease = ctl.json(&["lock", "show", "jobs"])["holder"]["lease"].to_string();
    ctl.says(&["lease", "revoke", &lease]);
    let (code, said) = ended(child, dir.path());
    assert_eq!(code, UNAVAILABLE, "{said}");
    assert_eq!(ctl.says(&["lease", "ls", "-o", "json"]), "", "nothing is left of either");

    // Lost too shortly before the end for anybody to look.
    let mmapctl = env!("CARGO_BIN_EXE_mmapctl");
    let give_back = format!("{mmapctl} lock release jobs ${{MMAPD_FENCE##*:}}");
    let run = |script: &str| ctl.run(&["lock", "run", "jobs", "--", "sh", "-c", script]);
    let lost = run(&give_back);
    assert_eq!(lost.status.code(), UNAVAILABLE);
    assert!(text(&lost.stderr).contains("lost before the command ended"));
    let lost = run(&format!("{give_back}; exit 7"));
    assert_eq!(lost.status.code(), Some(7), "its own word counts");
    assert!(text(&lost.stderr).contains("lost before the command ended"));
}

/// Else it would go on when its lock has ended.
#[test]
fn signals_that_end_lock_run_reach_its_command() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    let dir = tempfile::tempdir().expect("a folder");
    let all = [("HUP", Signal::HUP), ("QUIT", Signal::QUIT), ("INT", Signal::INT)];
    for (code, (name, signal)) in (20..).zip(all) {
        let script =
            format!("trap 'exit {code}' {name}; touch began; while :; do sleep 0.05; done");
        let child = under_lock(&ctl, dir.path(), &[], &script);
        kill_process(Pid::from_child(&child), signal).expect("it is there");
        assert_eq!(ended(child, dir.path()).0, Some(code), "{name}");
        assert_eq!(ctl.fails(&["lock", "show", "jobs"]).0, NOT_FOUND, "{name}");
    }
}

#[test]
fn a_closed_pipe_changes_no_exit_code() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    ctl.says(&["put", "a", "1"]);
    let closed = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    let revision = ctl.json(&["put", "a", "2"])["revision"].as_u64().expect("a revision") - 1;
    let dir = tempfile::tempdir().expect("a folder");
    let archive = dir.path().join("debug.tar.gz");
    let archive = archive.to_str().expect("text");
    for (args, code) in [
        (&["txn", "--check", "if missing a"][..], PRECONDITION),
        (&["txn", "if missing a"], Some(0)),
        (&["get", "a"], Some(0)),
        (&["get", "none"], NOT_FOUND),
        (&["ls"], Some(0)),
        (&["watch", "--after", &revision.to_string()], Some(0)),
        (&["lease", "keepalive", "99"], NOT_FOUND),
        (&["bench", "--operations", "2", "--connections", "1", "--histogram"], Some(0)),
        (&["bench", "--operations", "2", "--connections", "1", "-o", "json"], Some(0)),
        (&["torture", "--check", "/dev/null"], FAILURE),
        (&["torture", "--check", "/dev/null", "-o", "json"], FAILURE),
        (&["debug", "--interval", "10ms", "--out", archive], Some(0)),
    ] {
        let mut child =
            ctl.command(args).stdout(closed()).stderr(closed()).spawn().expect("it runs");
        let status = wait("it ends", || child.try_wait().expect("our child"));
        assert_eq!(status.code(), code, "{args:?}");
    }
}

#[test]
fn a_cluster_is_looked_after() {
    let mut cluster = Cluster::start(3, "");
    let ctl = Ctl::of(&cluster);
    let (leader, _) = cluster.leader_after(0);
    let shown = ctl.json(&["leader"]);
    assert_eq!(shown["id"], leader as u64 + 1);
    let next = (leader + 1) % 3 + 1;
    let moved = ctl.json(&["leader", "--transfer", &next.to_string()]);
    assert_eq!(moved["id"], next);
    assert!(ctl.says(&["leader", "--transfer"]).contains(" leads, term "));

    let members = ctl.json(&["cluster"]);
    assert_eq!(members["members"].as_array().expect("a list").len(), 3);
    let table = ctl.says(&["cluster"]);
    assert!(table.starts_with("ID  URL ") && table.contains("leader"), "{table}");
    assert_eq!(ctl.json_lines(&["status"]).len(), 3);
    assert_eq!(ctl.says(&["status"]).lines().count(), 4);

    // A learner and back, in the order a person would go.
    let (leader, _) = cluster.leader_after(0);
    let other = ((leader + 1) % 3 + 1).to_string();
    let voter = |members: &Json| {
        let members = members["members"].as_array().expect("a list").clone();
        let one = members.into_iter().find(|it| it["id"].as_u64() == other.parse().ok());
        one.expect("a member")["voter"].clone()
    };
    assert_eq!(voter(&ctl.json(&["member", "demote", &other])), false);
    assert_eq!(voter(&ctl.json(&["member", "promote", &other])), true);
    assert_eq!(ctl.fails(&["member", "remove", "99"]).0, NOT_FOUND);
    assert_eq!(ctl.fails(&["member", "set", "1"]).0, USAGE);

    ctl.says(&["put", "a", "1"]);
    assert!(ctl.says(&["compact"]).contains(" in use\n"));
    assert_eq!(ctl.json(&["scrub"])["findings"], json!([]));
    assert_eq!(ctl.json(&["log", "mmapd=debug", "--for", "1m"])["filter"], "info,mmapd=debug");

    // One is gone: what the others say is shown, and the exit code tells.
    cluster.nodes[0].kill();
    let output = ctl.run(&["status"]);
    assert_eq!(output.status.code(), UNAVAILABLE);
    let table = text(&output.stdout);
    assert!(table.lines().nth(1).expect("a row").contains("unavailable"), "{table}");
    assert_eq!(table.lines().count(), 4);
    assert_eq!(ctl.says(&["get", "a"]), "1");

    // A watch goes on at another node.
    let mut child = ctl
        .command(&["watch", "--key", "w", "-n", "2"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("mmapctl runs");
    let mut lines = BufReader::new(child.stdout.take().expect("an output")).lines();
    // The watch counts from when it began, which nobody says: write until it is seen.
    let seen = std::thread::spawn(move || lines.next().expect("a line").expect("text"));
    wait("the watch to see a write", || {
        ctl.says(&["put", "w", "x"]);
        seen.is_finished().then_some(())
    });
    assert!(seen.join().expect("a line").contains(" put w x"));
    cluster.nodes[1].kill();
    cluster.nodes[0].start();
    ctl.says(&["put", "w", "y"]);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_backup_becomes_another_cluster() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    ctl.says(&["put", "kept", "yes"]);
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).to_str().expect("text").to_owned();
    let file = path("one.backup");
    let done = ctl.json(&["backup", &file]);
    assert_eq!(done["bytes"], fs::metadata(&file).expect("a file").len());
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1, "and nothing beside it");
    assert_eq!(ctl.fails(&["backup", &file]).0, USAGE);
    assert_eq!(ctl.json(&["verify", &file]), done);
    assert_eq!(ctl.run(&["backup", "-"]).stdout, fs::read(&file).expect("a file"));

    // Damage is named, wherever it is.
    let whole = fs::read(&file).expect("a file");
    let damaged = path("damaged");
    for at in [0, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&damaged, bytes).expect("a file");
        assert_eq!(ctl.fails(&["verify", &damaged]).0, FAILURE);
    }
    fs::write(&damaged, &whole[..whole.len() - 1]).expect("a file");
    assert_eq!(ctl.fails(&["verify", &damaged]).0, FAILURE);
    let (db, log) = (path("db"), path("log"));
    let to = ["--id", "1", "--db", &db, "--log", &log];
    assert_eq!(ctl.fails(&[&["restore", &damaged][..], &to].concat()).0, FAILURE);
    ctl.says(&[&["restore", &file][..], &to].concat());
    let dump = Command::new(env!("CARGO_BIN_EXE_mmapd"))
        .args(["export", &db, &log])
        .output()
        .expect("mmapd runs");
    let dump: Json = serde_json::from_slice(&dump.stdout).expect("JSON");
    assert_eq!(dump, json!({"kept": "yes"}));
    assert_eq!(ctl.fails(&[&["restore", &file][..], &to].concat()).0, FAILURE);
}

/// Somebody who answers every request with these bytes, and nothing after them.
fn answers(bytes: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let mut line = String::new();
            while stream.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            stream.get_mut().write_all(bytes.as_bytes()).expect("it reads");
            open.push(stream);
        }
    });
    url
}

#[test]
fn a_backup_that_is_interrupted_leaves_nothing() {
    let endless = "HTTP/1.1 200 OK\r\nMmapd-Revision: 7\r\nContent-Length: 1000\r\n\r\nMMBK";
    let ctl = Ctl { endpoints: vec![answers(endless)] };
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("file");
    let mut child =
        ctl.command(&["backup", file.to_str().expect("text")]).spawn().expect("it runs");
    let files = || fs::read_dir(dir.path()).expect("a folder").count();
    wait("it writes", || (files() == 1).then_some(()));
    assert!(!file.exists(), "it has another name before it is whole");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it is there");
    let status = wait("it ends", || child.try_wait().expect("our child"));
    assert_eq!((status.code(), files()), (FAILURE, 0));
}

#[test]
fn an_answer_of_another_program_is_a_failure() {
    let odd = answers("HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\n<html>");
    let ctl = Ctl { endpoints: vec![odd] };
    for args in [&["get", "k"][..], &["ls"], &["status"], &["lock", "show", "jobs"]] {
        assert_eq!(ctl.run(args).status.code(), FAILURE, "{args:?}");
    }
    assert_eq!(ctl.run(&["put", "k", "v"]).status.code(), Some(6), "who knows what it did");
}

#[test]
fn an_empty_token_is_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let tokens = dir.path().join("tokens.toml");
    let all = "anonymous = [\"all\"]\n[[roles]]\nname = \"all\"\n\
               rights = [{ verbs = [\"read\", \"write\", \"observe\"] }]\n";
    fs::write(&tokens, all).expect("a file");
    let tuning = format!("[auth]\ntokens = {:?}\n", tokens.to_str().expect("text"));
    let cluster = Cluster::start(1, &tuning);
    let ctl = Ctl::of(&cluster);
    let ends = |token: &str| {
        let output = ctl.command(&["get", "none"]).env("MMAPD_TOKEN", token).output();
        output.expect("mmapctl runs").status.code()
    };
    assert_eq!((ends(""), ends("wrong")), (NOT_FOUND, FAILURE));
}

#[test]
fn usage_and_absence_have_their_codes() {
    let ctl = Ctl { endpoints: vec!["http://127.0.0.1:1".into()] };
    assert_eq!(ctl.run(&[]).status.code(), USAGE);
    assert_eq!(ctl.fails(&["del"]).0, USAGE);
    assert_eq!(ctl.fails(&["put", "k", "v", "--ttl", "soon"]).0, USAGE);
    assert_eq!(ctl.fails(&["--endpoint", "nonsense", "get", "k"]).0, USAGE);
    assert_eq!(ctl.fails(&["--cacert", "/no/such/file", "get", "k"]).0, USAGE);
    for args in
        [&["get", "k"][..], &["put", "k", "v"], &["ls"], &["watch"], &["backup", "/dev/null/x"]]
    {
        let (code, why) = ctl.fails(&[&["--timeout", "300ms"], args].concat());
        let file = args[0] == "backup";
        assert_eq!(code, if file { FAILURE } else { UNAVAILABLE }, "{args:?} {why}");
    }

    let help = ctl.says(&["--help"]);
    assert!(help.contains("Exit codes: 0 done"), "{help}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(ctl.says(&["completions", shell]).contains("playground"), "{shell}");
    }
    assert!(ctl.says(&["man"]).contains(".TH mmapctl 1"));
    let dir = tempfile::tempdir().expect("a folder");
    ctl.says(&["man", "--dir", dir.path().to_str().expect("text")]);
    assert!(fs::exists(dir.path().join("mmapctl-lock-run.1")).expect("a folder"));
}

/// A leader that hangs may have taken a write, or may still.
#[test]
fn an_outcome_that_nobody_knows_is_said() {
    let cluster = Cluster::start(1, "");
    let ctl = Ctl::of(&cluster);
    ctl.says(&["put", "a", "1"]);
    cluster.nodes[0].signal(Signal::STOP);
    let child = ctl.command(&["--timeout", "2s", "put", "a", "2"]).output();
    let read = ctl.command(&["--timeout", "2s", "get", "a"]).output();
    cluster.nodes[0].signal(Signal::CONT);
    assert_eq!(child.expect("mmapctl runs").status.code(), Some(6));
    assert_eq!(read.expect("mmapctl runs").status.code(), UNAVAILABLE);
}
