//! The daemon as an operator meets it: the real binary, its messages and its exit codes.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the message")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
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
