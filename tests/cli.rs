//! The daemon as an operator meets it: the real binary, its messages and its exit codes.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

/// The daemon with an empty environment, in a directory of its own.
fn mmapd(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mmapd"));
    command.current_dir(dir).env_clear().args(args).stdin(Stdio::null());
    command
}

fn output(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = mmapd(dir, args);
    command.envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let _watchdog = Watchdog::over(&child);
    child.wait_with_output().unwrap()
}

/// Kills a process that lasts longer than any test should, so that its test fails.
struct Watchdog(#[expect(dead_code, reason = "dropping it calls the dog off")] Sender<()>);

impl Watchdog {
    fn over(child: &Child) -> Self {
        let pid = child.id().to_string();
        let (off, patience) = mpsc::channel();
        std::thread::spawn(move || {
            if patience.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-s", "KILL", &pid]).status();
            }
        });
        Self(off)
    }
}

#[track_caller]
fn expect(output: &Output, code: i32, stdout: &[&str], stderr: &[&str]) {
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let all = format!("code {:?}\n{}\n{}", output.status.code(), texts[0], texts[1]);
    assert_eq!(output.status.code(), Some(code), "{all}");
    for (text, parts) in texts.iter().zip([stdout, stderr]) {
        for part in parts {
            assert!(text.contains(part), "should say {part:?}:\n{all}");
        }
    }
}

#[test]
fn sound_settings_are_confirmed_and_printed_with_their_layers() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.toml"), "[limits]\nvalue = \"1MiB\"\n").unwrap();
    let args = ["--config", "a.toml", "--id", "3", "-port", "4001", "-db", "x/db", "-log", "x/log"];
    let env = [("MMAPD_LOG__FORMAT", "json"), ("MMAPD_PEERS", "3=http://127.0.0.1:4001")];
    let check = output(dir.path(), &[&args[..], &["--check-config"]].concat(), &env);
    expect(&check, 0, &["sound: node 3 of 1", "127.0.0.1:4001"], &[]);
    let printed = output(dir.path(), &[&args[..], &["--print-config"]].concat(), &env);
    let lines = [
        "id = 3 # --id\n",
        "listen = \"127.0.0.1:4001\" # --port\n",
        "db = \"x/db\" # --db\n",
        "log = \"x/log\" # --log\n",
        "value = \"1MiB\" # a.toml\n",
        "format = \"json\" # MMAPD_LOG__FORMAT\n",
        "[[cluster.peers]] # MMAPD_PEERS\n",
        "heartbeat = \"100ms\" # default\n",
    ];
    expect(&printed, 0, &lines, &[]);
    assert!(!dir.path().join("x").exists(), "asking about settings makes no files");

    std::fs::write(dir.path().join("b.toml"), &printed.stdout).unwrap();
    let again = output(dir.path(), &["-config=b.toml", "--check-config"], &[]);
    expect(&again, 0, &["sound: node 3 of 1"], &[]);
}

#[test]
fn mistakes_in_a_file_name_the_file_the_key_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (text, parts) in [
        ("[node]\nidd = 2\n", &["bad.toml: node.idd: ", "line 2", "remove the key"][..]),
        ("[node]\nid = \"two\"\n", &["bad.toml: node.id: ", "line 2", "correct it"]),
        ("[raft]\nheartbeat = 100\n", &["bad.toml: raft.heartbeat: ", "\"150ms\""]),
        ("[raft]\nheartbeat = \"200ms\"\n", &["bad.toml: raft.heartbeat: ", "a third", "shorten"]),
        (
            "[[cluster.peers]]\nid = 2\nurl = \"http://a:1\"\n",
            &["bad.toml: cluster.peers: ", "no node 1", "add it"],
        ),
        ("[node]\nlisten = \"0.0.0.0:1\"\n", &["bad.toml: node.listen: ", "set node.advertise"]),
        ("[storage]\ndb = \"data/log/db\"\n", &["bad.toml: storage.db: ", "inside", "move"]),
        ("[limits]\nvalue = \"32MiB\"\n", &["bad.toml: limits.value: ", "at most"]),
        ("not toml", &["bad.toml", "line 1"]),
    ] {
        std::fs::write(dir.path().join("bad.toml"), text).unwrap();
        for mode in [&["--check-config"][..], &["--print-config"], &[]] {
            let args = [&["--config", "bad.toml"][..], mode].concat();
            expect(&output(dir.path(), &args, &[]), 78, &[], parts);
        }
    }
    let missing = output(dir.path(), &["--config", "none.toml"], &[]);
    expect(&missing, 78, &[], &["none.toml: cannot be read", "correct --config"]);
    assert!(!dir.path().join("data").exists(), "a wrong setting leaves no files behind");
}

#[test]
fn mistakes_in_environment_and_flags_name_them() {
    let dir = tempfile::tempdir().unwrap();
    for (args, env, parts) in [
        (&[][..], &[("MMAPD_NODE__ID", "0")][..], &["variable MMAPD_NODE__ID: node.id: "][..]),
        (&[], &[("MMAPD_NODE__IDD", "1")], &["variable MMAPD_NODE__IDD", "node.idd", "remove it"]),
        (&[], &[("MMAPD_NODE_ID", "1")], &["rename it to MMAPD_NODE__ID"]),
        (&[], &[("PORT", "x")], &["variable PORT: node.listen: ", "0 to 65535"]),
        (&["--id", "0"], &[], &["--id: node.id: ", "from 1 on"]),
        (&["--id", "x"], &[], &["--id: node.id = \"x\"", "the default is 1"]),
        (&["--port", "70000"], &[], &["--port: node.listen: ", "0 to 65535"]),
        (&["--listen", "0.0.0.0:3001"], &[], &["--listen: node.listen: ", "set node.advertise"]),
        (&["--peer", "http://a:1"], &[], &["--peer: cluster.peers: ", "ID=URL"]),
        (&["--peer", "2=http://a:1"], &[], &["--peer: cluster.peers: ", "no node 1"]),
        (&["--log-level", "loud"], &[], &["--log-level: log.level", "`info`"]),
        (&["--db", "a", "--log", "./a"], &[], &["--db: storage.db: ", "path of its own"]),
    ] {
        let args = [args, &["--check-config"]].concat();
        expect(&output(dir.path(), &args, env), 78, &[], parts);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["--nonsense"][..],
        &["extra"],
        &["--id"],
        &["--port", "1", "--listen", "127.0.0.1:1"],
        &["-ports", "1"],
    ] {
        expect(&output(dir.path(), args, &[]), 2, &[], &["error: ", "--help"]);
    }
    expect(&output(dir.path(), &["--help"], &[]), 0, &["--print-config", "port 3001"], &[]);
    let version = format!("mmapd {} (commit ", env!("CARGO_PKG_VERSION"));
    expect(&output(dir.path(), &["--version"], &[]), 0, &[&version], &[]);
    let openapi = output(dir.path(), &["openapi"], &[]);
    expect(&openapi, 0, &["\"openapi\": \"3.", "/v1/keys/{key}", "/v1/status"], &[]);
}

#[test]
fn a_port_that_is_taken_is_named_and_no_data_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let out = output(dir.path(), &["--listen", &address], &[]);
    expect(&out, 1, &[], &[&address, "choose another with --port"]);
    assert!(!dir.path().join("data").exists());
}

/// A daemon on a free port, killed when dropped.
struct Running {
    child: Child,
    _watchdog: Watchdog,
    address: String,
    lines: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(dir: &Path, env: &[(&str, &str)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut child = mmapd(dir, &["--port", &port.to_string()])
            .envs(env.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let watchdog = Watchdog::over(&child);
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("serving") {
            let read = lines.read_line(&mut seen).unwrap();
            assert!(read > 0, "ended before it served:\n{seen}");
        }
        Self { child, _watchdog: watchdog, address: format!("127.0.0.1:{port}"), lines }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// Waits for the end; the exit code, and what was logged since the start.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.lines.read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_says_ready_serves_metrics_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("notify");
    let supervisor = UnixDatagram::bind(&socket).unwrap();
    supervisor.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let node = Running::start(dir.path(), &[("NOTIFY_SOCKET", socket.to_str().unwrap())]);
    let mut told = [0; 32];
    let len = supervisor.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"READY=1");
    let metrics = node.get("/metrics");
    for name in ["mmapd_raft_term ", "mmapd_mmap_msyncs_total{file=\"log\"}", "mmapd_build_info{"] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    node.signal("HUP");
    assert!(node.get("/livez").starts_with("HTTP/1.1 200"), "SIGHUP does not end the process");
    node.signal("TERM");
    let (code, log) = node.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("settings read again") && log.contains("stopped"), "{log}");
    let len = supervisor.recv(&mut told).unwrap();
    assert_eq!(&told[..len], b"STOPPING=1");
}

#[test]
fn data_in_use_is_refused_and_data_of_another_node_too() {
    let dir = tempfile::tempdir().unwrap();
    let node = Running::start(dir.path(), &[]);
    let second = output(dir.path(), &["--port", "0"], &[]);
    expect(&second, 77, &[], &["in use by another process", "storage.db"]);
    node.signal("INT");
    assert_eq!(node.end().0, Some(0));
    let other = output(dir.path(), &["--port", "0", "--id", "2"], &[]);
    expect(&other, 78, &[], &["node.id"]);
}

#[test]
fn a_plain_file_where_the_log_should_be_is_a_configuration_error() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log"), "mine").unwrap();
    let out = output(dir.path(), &["--port", "0", "-db", "db", "-log", "log"], &[]);
    expect(&out, 78, &[], &["log", "storage.log"]);
    assert_eq!(std::fs::read(dir.path().join("log")).unwrap(), b"mine");
}

/// Path and content of every file below `dir`.
fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut open) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    found
}

/// As `output`, and sees that not a byte of any file changed.
#[track_caller]
fn look(dir: &Path, args: &[&str]) -> Output {
    let before = files_below(dir);
    let output = output(dir, args, &[]);
    let after = files_below(dir);
    let names: Vec<_> = after.keys().filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(names.is_empty() && before.len() == after.len(), "{args:?} changed {names:?}");
    output
}

/// A store of many keys in segments of 64 KiB, stopped as asked.
fn store_of(dir: &Path, keys: u32) {
    let map: serde_json::Map<_, _> = (0..keys)
        .map(|number| {
            let size = if number % 50 == 7 { 9000 } else { 20 };
            (format!("key-{number:06}"), format!("value-{number}-").repeat(size / 10).into())
        })
        .collect();
    std::fs::write(dir.join("seed.json"), serde_json::Value::Object(map).to_string()).unwrap();
    std::fs::write(dir.join("small.toml"), "[storage]\nsegment = \"64KiB\"\n").unwrap();
    expect(&output(dir, &["import", "seed.json", "--config", "small.toml"], &[]), 0, &[], &[]);
}

fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap()
}

#[test]
fn a_map_survives_import_serving_and_export_and_looking_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let seed = r#"{"color":"blue","a":"1","shape/round":"\u00e9\n","a":"2","z":""}"#;
    std::fs::write(dir.path().join("seed.json"), seed).unwrap();
    let imported = output(dir.path(), &["import", "seed.json"], &[]);
    expect(&imported, 0, &[], &["imported 4 keys", "revision 6"]);
    let again = output(dir.path(), &["import", "seed.json"], &[]);
    expect(&again, 2, &[], &["data/db.mmapd", "there is data already"]);

    let node = Running::start(dir.path(), &[]);
    let got = node.get("/v1/keys/color");
    assert!(got.ends_with("\r\n\r\nblue") && got.contains("etag: \"2\""), "{got}");
    for command in ["check", "dump", "export"] {
        expect(&output(dir.path(), &[command], &[]), 77, &[], &["in use by another process"]);
    }
    node.signal("TERM");
    assert_eq!(node.end().0, Some(0));

    let check = look(dir.path(), &["check"]);
    expect(&check, 0, &["Clean", "4 keys at revision 6", "stopped as asked", "entries 1"], &[]);
    let check = look(dir.path(), &["check", "--json", "data/db.mmapd", "data/log"]);
    assert_eq!(json(&check.stdout)["clean"], true);
    assert_eq!(json(&check.stdout)["database"]["newest"]["keys"], 4);
    let dump = look(dir.path(), &["dump"]);
    let lines: Vec<_> = dump.stdout.split(|byte| *byte == b'\n').collect();
    let lines: Vec<_> = lines.iter().filter(|line| !line.is_empty()).map(|l| json(l)).collect();
    assert_eq!(lines[0]["type"], "hard_state");
    assert_eq!(lines[2]["command"]["key"], "color");
    let keys: Vec<_> = lines.iter().filter(|line| line["type"] == "key").collect();
    assert_eq!(keys.len(), 4);
    assert_eq!((&keys[0]["key"], &keys[0]["value"]), (&"a".into(), &"2".into()));
    assert_eq!((&keys[0]["create_revision"], &keys[0]["version"]), (&3.into(), &2.into()));
    let few = look(dir.path(), &["dump", "--db-only", "--keys-only", "--prefix", "shape/"]);
    assert_eq!(few.stdout.split(|byte| *byte == b'\n').count(), 3, "state, one key, the end");
    let exported = look(dir.path(), &["export"]);
    assert_eq!(json(&exported.stdout), json(seed.as_bytes()));
    let to_file = output(dir.path(), &["export", "-o", "out.json"], &[]);
    expect(&to_file, 0, &[], &[]);
    assert_eq!(std::fs::read(dir.path().join("out.json")).unwrap(), exported.stdout);
}

#[test]
fn what_is_not_text_is_named_wrapped_left_out_or_dumped() {
    let dir = tempfile::tempdir().unwrap();
    let seed = r#"{"bin":{"base64":"/wA="},"text":"x"}"#;
    std::fs::write(dir.path().join("seed.json"), seed).unwrap();
    expect(&output(dir.path(), &["import", "seed.json"], &[]), 0, &[], &[]);
    let refused = look(dir.path(), &["export"]);
    expect(&refused, 65, &[], &["key \"bin\"", "--encoding base64", "--skip-binary"]);
    assert!(refused.stdout.is_empty(), "half a map is worse than none");
    let wrapped = look(dir.path(), &["export", "--encoding", "base64"]);
    assert_eq!(json(&wrapped.stdout), json(seed.as_bytes()));
    let skipped = look(dir.path(), &["export", "--skip-binary"]);
    expect(&skipped, 0, &["{\n\"text\":\"x\"\n}\n"], &["left out 1 keys"]);
    let dump = look(dir.path(), &["dump"]);
    std::fs::write(dir.path().join("lines"), dump.stdout).unwrap();
    let other = ["--db", "other/db", "--log", "other/log"];
    let import = [&["import", "--lines", "lines"][..], &other].concat();
    expect(&output(dir.path(), &import, &[]), 0, &[], &["imported 2 keys"]);
    let copied = look(dir.path(), &[&["export", "--encoding", "base64"][..], &other].concat());
    assert_eq!(copied.stdout, wrapped.stdout);
}

#[test]
fn bad_json_is_named_by_its_place_and_leaves_no_store() {
    let dir = tempfile::tempdir().unwrap();
    for (text, parts) in [
        ("{\"a\":\"b\",\n \"c\":7}", &["bad.json: ", "integer `7`", "line 2 column 7"][..]),
        ("{\"a\":\"b\"", &["bad.json: ", "EOF", "line 1"]),
        ("{\"a\":\"b\"} x", &["bad.json: ", "trailing", "line 1 column 11"]),
        ("{\"a\":{\"base64\":\"*\"}}", &["bad.json: ", "line 1"]),
        ("{\"\":\"b\"}", &["bad.json: ", "1 to 4096", "line 1"]),
        ("[]", &["bad.json: ", "a map of keys", "line 1"]),
    ] {
        std::fs::write(dir.path().join("bad.json"), text).unwrap();
        expect(&output(dir.path(), &["import", "bad.json"], &[]), 65, &[], parts);
        let left = files_below(&dir.path().join("data"));
        let left: Vec<_> = left.keys().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(left, ["db.mmapd.lock", "LOCK"], "after {text}");
    }
    expect(&output(dir.path(), &["import", "none.json"], &[]), 74, &[], &["none.json"]);
    std::fs::write(dir.path().join("good.json"), "{}").unwrap();
    let peers = [("MMAPD_PEERS", "1=http://127.0.0.1:3001,2=http://127.0.0.1:3002")];
    let cluster = output(dir.path(), &["import", "good.json"], &peers);
    expect(&cluster, 78, &[], &["2 members", "import on a node alone"]);
    expect(&output(dir.path(), &["import", "good.json"], &[]), 0, &[], &["imported 0 keys"]);
    expect(&look(dir.path(), &["check"]), 0, &["Clean"], &[]);
}

#[test]
fn a_closed_pipe_ends_a_dump_quietly_and_missing_files_are_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    store_of(dir.path(), 2000);
    let mut child =
        mmapd(dir.path(), &["dump"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _watchdog = Watchdog::over(&child);
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    expect(&out, 0, &[], &[]);
    assert!(out.stderr.is_empty());
    for command in ["check", "dump", "export"] {
        let none = output(dir.path(), &[command, "no/db", "no/log"], &[]);
        expect(&none, 74, &[], &["no/db", "no/log"]);
    }
    assert!(!dir.path().join("no").exists());
    expect(&look(dir.path(), &["dump", "no/db", "data/log"]), 74, &[], &["no/db", "no database"]);
    expect(&look(dir.path(), &["check", "data/db.mmapd"]), 2, &[], &["LOG"]);
}

#[test]
fn a_killed_node_is_clean_and_its_torn_tail_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("seed.json"), r#"{"a":"1"}"#).unwrap();
    expect(&output(dir.path(), &["import", "seed.json"], &[]), 0, &[], &[]);
    let node = Running::start(dir.path(), &[]);
    node.signal("KILL");
    assert_eq!(node.end().0, None);
    let check = look(dir.path(), &["check", "--json"]);
    expect(&check, 0, &["\"clean_stop\": false"], &[]);
    let segments = json(&check.stdout)["log"]["segments"].clone();
    let newest = segments.as_array().unwrap().last().unwrap();
    let (file, used) = (newest["file"].as_str().unwrap(), newest["used"].as_u64().unwrap());
    // The first and the third sector of a batch arrived, the second did not.
    let file = dir.path().join(file);
    let mut bytes = std::fs::read(&file).unwrap();
    let start = usize::try_from(used.next_multiple_of(512)).unwrap();
    bytes[start..start + 8].copy_from_slice(b"BTCHxxxx");
    bytes[start + 1024..start + 1030].fill(7);
    std::fs::write(&file, bytes).unwrap();
    expect(&look(dir.path(), &["check"]), 0, &["torn tail", "Clean"], &[]);
    expect(&look(dir.path(), &["export"]), 0, &["\"a\":\"1\""], &[]);
}

/// Flips a bit.
fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

fn position(path: &Path, wanted: &[u8]) -> usize {
    let bytes = std::fs::read(path).unwrap();
    bytes.windows(wanted.len()).position(|part| part == wanted).unwrap()
}

fn cut(path: &Path, len: u64) {
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

/// Name, what is done to the database and the log, and what the report must say.
type Damage = (&'static str, fn(&Path, &Path), &'static [&'static str]);

const DAMAGES: &[Damage] = &[
    ("leaf", |db, _| flip(db, position(db, b"key-000100") + 1), &["page", "the keys"]),
    ("value", |db, _| flip(db, position(db, b"value-57-value-57-") + 900), &["key-000057"]),
    ("newest meta", |db, _| flip(db, 16 * 4096 + 100), &["meta page", "nothing is lost"]),
    (
        "bitmap",
        |db, _| {
            let bytes = std::fs::read(db).unwrap();
            let newest = if number(&bytes, 24) > number(&bytes, 16 * 4096 + 24) { 0 } else { 16 };
            let page = number(&bytes, newest * 4096 + 72);
            flip(db, page * 4096 + 3);
        },
        &["bitmap", "is damaged"],
    ),
    ("database cut", |db, _| cut(db, 20 * 4096), &["too short"]),
    ("database gone", |db, _| std::fs::remove_file(db).unwrap(), &["the file is missing"]),
    (
        "a copy of a segment header",
        |_, log| flip(&log.join("0000000000000002.seg"), 2048 + 50),
        &["0000000000000002.seg, byte 2048: segment header", "one of two copies"],
    ),
    (
        "segment header",
        |_, log| {
            flip(&log.join("0000000000000002.seg"), 50);
            flip(&log.join("0000000000000002.seg"), 2048 + 50);
        },
        &["0000000000000002.seg, byte 0: segment header", "entries "],
    ),
    (
        "payload",
        |_, log| {
            let file = log.join("0000000000000001.seg");
            flip(&file, position(&file, b"key-000003") + 2);
        },
        &["0000000000000001.seg", "the payload is damaged", "entry 5 of term 1", "export"],
    ),
    (
        "frame header",
        |_, log| {
            let file = log.join("0000000000000001.seg");
            flip(&file, position(&file, b"key-000003") - 8 - 48 + 9);
        },
        &["the header of a frame is damaged", "entries 5 to "],
    ),
    (
        "batch header",
        |_, log| flip(&log.join("0000000000000001.seg"), 4096 + 70),
        &["byte 4096: batch", "entries 2 to 513"],
    ),
    ("slot", |_, log| flip(&log.join("hard.state"), 4096 + 60), &["byte 4096", "slot 1 of 4"]),
    ("state gone", |_, log| std::fs::remove_file(log.join("hard.state")).unwrap(), &["vote"]),
    (
        "segment cut",
        |_, log| cut(&log.join("0000000000000002.seg"), 9000),
        &["0000000000000002.seg", "batch", "entries "],
    ),
    (
        "segment gone",
        |_, log| std::fs::remove_file(log.join("0000000000000002.seg")).unwrap(),
        &["0000000000000002.seg", "the file is missing", "entries "],
    ),
    (
        "newest cut",
        |_, log| {
            let names = std::fs::read_dir(log).unwrap().map(|name| name.unwrap().path());
            let newest = names.filter(|path| path.extension().is_some_and(|e| e == "seg")).max();
            cut(&newest.unwrap(), 4200);
        },
        &["the file was cut"],
    ),
];

#[test]
fn every_kind_of_damage_is_told_with_its_place_and_nothing_is_changed() {
    let whole = tempfile::tempdir().unwrap();
    store_of(whole.path(), 6000);
    expect(&look(whole.path(), &["check"]), 0, &["Clean", "6000 keys"], &[]);
    assert!(whole.path().join("data/log/0000000000000002.seg").exists(), "several segments");
    for (name, harm, parts) in DAMAGES {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in files_below(&whole.path().join("data")) {
            let to = dir.path().join(path.strip_prefix(whole.path()).unwrap());
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::write(to, bytes).unwrap();
        }
        harm(&dir.path().join("data/db.mmapd"), &dir.path().join("data/log"));
        let check = look(dir.path(), &["check"]);
        let text = String::from_utf8_lossy(&check.stdout);
        assert_eq!(check.status.code(), Some(65), "{name}:\n{text}");
        for part in *parts {
            assert!(text.contains(part), "{name} should say {part:?}:\n{text}");
        }
        let report = json(&look(dir.path(), &["check", "--json"]).stdout);
        assert!(!report["damage"].as_array().unwrap().is_empty(), "{name}");
        let dump = look(dir.path(), &["dump"]);
        assert!([65, 74].contains(&dump.status.code().unwrap()), "{name}");
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    let bytes = bytes[at..at + 8].try_into().unwrap();
    usize::try_from(u64::from_le_bytes(bytes)).unwrap()
}
