//! Golden transcripts of HTTP: a script of requests with the answers written below them.
//!
//! A line is what its first characters say:
//! - `# ` a comment; `! ` one line of TOML for the server's settings;
//! - `> ` a request: its line (`HTTP/1.1`, `Host` and `Content-Length` are added where they
//!   are missing), headers, and after an empty `>` the body. It is sent on the connection of
//!   the request before unless the server closed that;
//! - `>> ` bytes as they are, on a connection of their own whose sending side is closed after
//!   them; `~> ` the same, but left open: the server has to close it;
//! - `=> ` how many messages of an answer that never ends are shown, and the request, on a
//!   connection of its own that is closed after them;
//! - `< ` an answer, and `(closed)` the end of the connection: written by `UPDATE=1`.
//!
//! In requests `{text*3}` repeats, `{next}` is the cursor of the last page, `\r`, `\n`,
//! `\xff` and `\\` are bytes. Lines of `>>` and `~>` are joined without anything between them.
//!
//! Answers show neither `date` nor request ids that the server made up.
//!
//! The same scripts are run against a follower of a cluster, whose answers have to be those of
//! a node alone; only its id is shown as that of the node alone, once it is checked.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

use mmapd::config::Config;

use super::follower::Follower;
use super::http::{Connection, Reply, Server};

/// Longest body shown in full.
const SHOWN: usize = 3000;

/// Who answers.
enum Stage {
    Alone(Server),
    Follower(Follower),
}

impl Stage {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Alone(server) => server.address,
            Self::Follower(follower) => follower.address(),
        }
    }

    /// The id of the node.
    fn id(&self) -> u64 {
        match self {
            Self::Alone(_) => 1,
            Self::Follower(follower) => follower.id(),
        }
    }

    /// The process that makes up request ids.
    fn pid(&self) -> u32 {
        match self {
            Self::Alone(_) => std::process::id(),
            Self::Follower(follower) => follower.pid(),
        }
    }

    /// A read of whatever there is finds what was written before it only on a node alone.
    fn before(&self, request: &str) {
        match self {
            Self::Follower(follower) if request.contains("consistency=stale") => {
                follower.catch_up();
            }
            Self::Alone(_) | Self::Follower(_) => {}
        }
    }
}

/// Runs a script and answers it with the answers as they are now.
fn run(script: &str, stage: Stage) -> String {
    let mut player = Player { stage, connection: None, next: String::new(), out: String::new() };
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('<') || line == "(closed)" {
            continue;
        }
        let Some(kind) = ["~>", ">>", "=>", ">"].into_iter().find(|kind| line.starts_with(kind))
        else {
            writeln!(player.out, "{line}").expect("a string grows");
            continue;
        };
        if player.out.lines().last().is_some_and(|line| line.starts_with(['<', '('])) {
            player.out.push('\n');
        }
        writeln!(player.out, "{line}").expect("a string grows");
        let mut block = vec![content(line, kind)];
        let more = |line: &&str| {
            let content = content(line, kind);
            line.starts_with(kind) && (kind != ">" || !begins(content))
        };
        while let Some(line) = lines.next_if(more) {
            writeln!(player.out, "{line}").expect("a string grows");
            block.push(content(line, kind));
        }
        match kind {
            ">" => player.request(&block),
            "=>" => player.stream(&block),
            _ => player.raw(&block, kind == ">>"),
        }
    }
    if let Stage::Follower(follower) = &player.stage {
        follower.end();
    }
    player.out
}

/// What the lines with settings say.
fn settings(script: &str) -> String {
    let lines: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("! ")).collect();
    lines.join("\n")
}

/// Compares a file with what its script does now, or rewrites it.
pub(crate) fn check(path: &Path) {
    let want = std::fs::read_to_string(path).expect("a script");
    let config: Config = toml::from_str(&settings(&want)).expect("settings");
    let got = run(&want, Stage::Alone(Server::start(config)));
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, got).expect("it can be written");
        return;
    }
    compare(path, &want, &got, "UPDATE=1 rewrites it");
}

/// Compares a file with what its script does through a follower, which decides nothing: while
/// answers are rewritten there is nothing to compare with.
pub(crate) fn check_through_a_follower(path: &Path) {
    if std::env::var_os("UPDATE").is_some() {
        return;
    }
    let want = std::fs::read_to_string(path).expect("a script");
    let got = run(&want, Stage::Follower(Follower::start(&settings(&want))));
    compare(path, &want, &got, "a follower answers otherwise than a node alone");
}

fn compare(path: &Path, want: &str, got: &str, hint: &str) {
    let differ = want.lines().zip(got.lines()).position(|(want, got)| want != got);
    let at = differ.unwrap_or(want.lines().count().min(got.lines().count()));
    let near = |text: &str| {
        let lines: Vec<&str> = text.lines().skip(at.saturating_sub(8)).take(24).collect();
        lines.join("\n")
    };
    assert!(
        want == got,
        "{} differs at line {}; {hint}\n--- want\n{}\n--- got\n{}",
        path.display(),
        at + 1,
        near(want),
        near(got)
    );
}

/// Is it the first line of a request: a method, and where to?
fn begins(line: &str) -> bool {
    let method = line.split_once(' ').filter(|(_, target)| target.starts_with(['/', '*', 'h']));
    method.is_some_and(|(method, _)| {
        method.len() > 2 && method.bytes().all(|byte| byte.is_ascii_uppercase())
    })
}

fn content<'a>(line: &'a str, kind: &str) -> &'a str {
    let rest = line.strip_prefix(kind).unwrap_or_default();
    rest.strip_prefix(' ').unwrap_or(rest)
}

struct Player {
    stage: Stage,
    connection: Option<Connection>,
    next: String,
    out: String,
}

impl Player {
    fn connect(&self) -> Connection {
        Connection::to(self.stage.address())
    }

    fn request(&mut self, block: &[&str]) {
        let bytes = self.compose(block);
        self.stage.before(block[0]);
        let head = block[0].starts_with("HEAD ");
        let mut connection = self.connection.take().unwrap_or_else(|| self.connect());
        connection.send(&bytes);
        let reply = connection.reply(head).expect("an answer");
        self.show(&reply);
        if reply.header("connection") == Some("close") {
            connection.end();
            self.out.push_str("(closed)\n");
        } else {
            self.connection = Some(connection);
        }
    }

    fn compose(&self, block: &[&str]) -> Vec<u8> {
        let end = block.iter().position(|line| line.is_empty()).unwrap_or(block.len());
        let (head, body) = block.split_at(end);
        let body = body.get(1..).unwrap_or_default();
        let body = self.bytes(&body.join("\\n"));
        let named = |name: &str| {
            let named = |line: &&str| line.to_ascii_lowercase().starts_with(name);
            head.iter().any(named)
        };
        let mut bytes = self.bytes(head[0]);
        if !head[0].contains(" HTTP/") {
            bytes.extend_from_slice(b" HTTP/1.1");
        }
        bytes.extend_from_slice(b"\r\n");
        for line in &head[1..] {
            bytes.extend(self.bytes(line));
            bytes.extend_from_slice(b"\r\n");
        }
        if !named("host:") {
            bytes.extend_from_slice(b"Host: x\r\n");
        }
        let framed = named("content-length:") || named("transfer-encoding:");
        let wants_length = ["PUT ", "POST "].iter().any(|method| head[0].starts_with(method));
        if !framed && (wants_length || !body.is_empty()) {
            bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend(body);
        bytes
    }

    /// The beginning of a stream.
    fn stream(&mut self, block: &[&str]) {
        let (messages, request) = block.split_first().expect("how many messages");
        let mut connection = self.connect();
        connection.send(&self.compose(request));
        let reply = connection.messages(messages.parse().expect("a number"));
        self.show(&reply);
    }

    /// Everything that comes until the server closes.
    fn raw(&mut self, block: &[&str], finish: bool) {
        let mut connection = self.connect();
        connection.send(&self.bytes(&block.concat()));
        if finish {
            connection.finish();
        }
        while let Some(reply) = connection.reply(false) {
            self.show(&reply);
        }
        self.out.push_str("(closed)\n");
    }

    fn show(&mut self, reply: &Reply) {
        let made_up = format!("{:x}-", self.stage.pid());
        let given = reply.header("request-id").unwrap_or_default();
        let id = if given.starts_with(&made_up) { given } else { "\0" };
        writeln!(self.out, "< {}", reply.line).expect("a string grows");
        for (name, value) in reply.headers.iter().filter(|(name, _)| name != "date") {
            // The length of a problem depends on that of the id within.
            let fixed = !(name == "content-length" && id != "\0" && reply.status() >= 400);
            let ours = name == "mmapd-node" && *value == self.stage.id().to_string();
            let value = match (ours, fixed) {
                (true, _) => "1".into(),
                (false, true) => value.replace(id, "*"),
                (false, false) => "*".into(),
            };
            writeln!(self.out, "< {name}: {value}").expect("a string grows");
        }
        let Ok(body) = std::str::from_utf8(&reply.body) else {
            writeln!(self.out, "<\n< {}", reply.body.escape_ascii()).expect("a string grows");
            return;
        };
        if let Ok(json) = serde_json::from_str::<serde_json::Value>(body)
            && let Some(next) = json["next"].as_str()
        {
            self.next = next.to_owned();
        }
        if body.len() > SHOWN {
            writeln!(self.out, "<\n< ({} bytes)", body.len()).expect("a string grows");
        } else if !body.is_empty() {
            self.out.push_str("<\n");
            for line in body.replace(id, "*").lines() {
                writeln!(self.out, "< {}", visible(line)).expect("a string grows");
            }
        }
    }

    fn bytes(&self, text: &str) -> Vec<u8> {
        let text = text.replace("{next}", &self.next);
        let mut out = Vec::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find(['\\', '{']) {
            out.extend_from_slice(&rest.as_bytes()[..at]);
            rest = &rest[at..];
            let repeated = rest.strip_prefix('{').and_then(|inner| {
                let (inner, after) = inner.split_once('}')?;
                let (what, times) = inner.rsplit_once('*')?;
                Some((what.repeat(times.parse().ok()?), after))
            });
            if let Some((text, after)) = repeated {
                out.extend(self.bytes(&text));
                rest = after;
            } else if rest.starts_with('{') {
                out.push(b'{');
                rest = &rest[1..];
            } else {
                let (byte, used) = escaped(&rest[1..]);
                out.push(byte);
                rest = &rest[1 + used..];
            }
        }
        out.extend_from_slice(rest.as_bytes());
        out
    }
}

/// In visible ASCII.
fn visible(line: &str) -> String {
    let show = |c: char| match c {
        ' '..='~' => c.to_string(),
        _ => c.escape_default().to_string(),
    };
    line.chars().map(show).collect()
}

/// The byte that is meant by what follows a backslash, and how long that is.
fn escaped(text: &str) -> (u8, usize) {
    match text.as_bytes() {
        [b'r', ..] => (b'\r', 1),
        [b'n', ..] => (b'\n', 1),
        [b'x', ..] => (u8::from_str_radix(&text[1..3], 16).expect("two digits"), 3),
        [byte, ..] => (*byte, 1),
        [] => panic!("a backslash at the end"),
    }
}
