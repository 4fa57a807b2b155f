//! A client of Server-Sent Events as small as it can be: one connection, messages as they come.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value as Json;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) id: Option<u64>,
    pub(crate) event: String,
    pub(crate) data: Json,
}

impl Message {
    /// Revision, kind and key of each change in it.
    pub(crate) fn changes(&self) -> Vec<(u64, &str, &str)> {
        let events = self.data["events"].as_array().map(Vec::as_slice).unwrap_or_default();
        events
            .iter()
            .map(|event| {
                let revision = event["mod_revision"].as_u64().expect("a revision");
                assert_eq!(Some(revision), self.id, "a message is of one revision");
                let kind = event["type"].as_str().expect("a type");
                (revision, kind, event["key"].as_str().expect("a key"))
            })
            .collect()
    }
}

/// Why there is no stream.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) problem: Json,
}

/// A stream of messages.
#[derive(Debug)]
pub(crate) struct Events {
    lines: BufReader<Chunked>,
    /// Id of the newest message.
    pub(crate) last: Option<u64>,
}

/// Opens `/v1/watch?query`, after `last` if there is one.
pub(crate) fn open(
    addr: SocketAddr,
    query: &str,
    last: Option<u64>,
) -> io::Result<Result<Events, Refused>> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let resume = last.map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
    let head = format!("GET /v1/watch?{query} HTTP/1.1\r\nHost: x\r\n{resume}\r\n");
    stream.write_all(head.as_bytes())?;
    let mut inner = BufReader::new(stream);
    let first = line(&mut inner)?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    let (mut length, mut kind) = (0, String::new());
    loop {
        let header = line(&mut inner)?.to_ascii_lowercase();
        match header.split_once(": ") {
            Some(("content-length", value)) => length = value.parse().expect("a length"),
            Some(("content-type", value)) => value.clone_into(&mut kind),
            Some(_) => {}
            None => break,
        }
    }
    if status != 200 {
        let mut body = vec![0; length];
        inner.read_exact(&mut body)?;
        let problem = serde_json::from_slice(&body).expect("a problem");
        return Ok(Err(Refused { status, problem }));
    }
    assert_eq!(kind, "text/event-stream");
    let chunked = Chunked { inner, left: 0, ended: false };
    Ok(Ok(Events { lines: BufReader::new(chunked), last }))
}

/// The same, where it must be.
pub(crate) fn watch(addr: SocketAddr, query: &str, last: Option<u64>) -> Events {
    open(addr, query, last).expect("an answer").expect("a stream")
}

impl Events {
    /// The next message; `None`: the stream ended in good order.
    pub(crate) fn next(&mut self) -> io::Result<Option<Message>> {
        let mut message = Message { id: None, event: String::new(), data: Json::Null };
        loop {
            let mut text = String::new();
            if self.lines.read_line(&mut text)? == 0 {
                assert_eq!(message.event, "", "the stream ended within a message");
                return Ok(None);
            }
            let text = text.trim_end_matches('\n');
            if text.is_empty() {
                self.last = message.id.or(self.last);
                return Ok(Some(message));
            }
            match text.split_once(": ") {
                Some(("id", id)) => message.id = Some(id.parse().expect("a revision")),
                Some(("event", event)) => event.clone_into(&mut message.event),
                Some(("data", data)) => message.data = serde_json::from_str(data).expect("JSON"),
                Some(("retry", milliseconds)) => assert_eq!(milliseconds, "1000"),
                other => panic!("not a line of a message: {other:?}"),
            }
        }
    }

    /// The next message, which must come.
    pub(crate) fn message(&mut self) -> Message {
        self.next().expect("it goes on").expect("it has not ended")
    }

    /// The next message that is not about progress.
    pub(crate) fn news(&mut self) -> Message {
        loop {
            let message = self.message();
            if message.event != "progress" {
                return message;
            }
        }
    }

    /// The next message, which must be a change.
    pub(crate) fn change(&mut self) -> Message {
        let message = self.news();
        assert_eq!(message.event, "change", "{message:?}");
        message
    }
}

/// The body of a response in chunks.
#[derive(Debug)]
struct Chunked {
    inner: BufReader<TcpStream>,
    left: usize,
    ended: bool,
}

impl Read for Chunked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.ended {
            let size = line(&mut self.inner)?;
            self.left = usize::from_str_radix(&size, 16)
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, size))?;
            if self.left == 0 {
                self.ended = true;
                line(&mut self.inner)?;
            }
        }
        if self.ended {
            return Ok(0);
        }
        let most = into.len().min(self.left);
        let got = self.inner.read(&mut into[..most])?;
        if got == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= got;
        if self.left == 0 {
            line(&mut self.inner)?;
        }
        Ok(got)
    }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if stream.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}
