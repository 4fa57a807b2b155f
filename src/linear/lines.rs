//! A history as lines of JSON: one operation a line, to be kept and judged again.
//!
//! `{"key":"a","client":1,"action":"put","value":"x","if":"absent","outcome":"done",
//! "revision":7,"existed":false,"called":1,"returned":2}`. Bytes that are no text are written as
//! `{"b64":"..."}`. `if` is `absent`, `present` or `{"value":BYTES}`; `outcome` is `read` (with
//! `seen`, unless there was nothing), `done`, `mismatch`, `failed` or `unknown`. An operation
//! that was never answered has no `returned`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::history::{Action, Bytes, Expect, History, Operation, Outcome};

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Text {
    Plain(String),
    Coded { b64: String },
}

impl Text {
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Plain(text.to_owned()),
            Err(_) => Self::Coded { b64: STANDARD.encode(bytes) },
        }
    }

    fn read(self) -> Result<Bytes, String> {
        match self {
            Self::Plain(text) => Ok(text.into_bytes()),
            Self::Coded { b64 } => STANDARD.decode(b64).map_err(|error| error.to_string()),
        }
    }
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum If {
    Absent,
    Present,
    Value(Text),
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Get,
    Put,
    Delete,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum End {
    Read,
    Done,
    Mismatch,
    Failed,
    Unknown,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    key: Text,
    #[serde(default)]
    client: u64,
    action: What,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Text>,
    #[serde(rename = "if", skip_serializing_if = "Option::is_none")]
    condition: Option<If>,
    outcome: End,
    #[serde(skip_serializing_if = "Option::is_none")]
    seen: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    existed: Option<bool>,
    called: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    returned: Option<u64>,
}

/// One operation as one line, without its end.
#[must_use]
pub fn write_line(key: &[u8], op: &Operation) -> String {
    let (action, value, expect) = match &op.action {
        Action::Get => (What::Get, None, None),
        Action::Put { value, expect } => (What::Put, Some(Text::of(value)), expect.as_ref()),
        Action::Delete { expect } => (What::Delete, None, expect.as_ref()),
    };
    let condition = expect.map(|expect| match expect {
        Expect::Absent => If::Absent,
        Expect::Present => If::Present,
        Expect::Value(value) => If::Value(Text::of(value)),
    });
    let (outcome, seen, revision, existed) = match &op.outcome {
        Outcome::Read { value, revision } => {
            (End::Read, value.as_deref().map(Text::of), *revision, None)
        }
        Outcome::Done { revision, existed } => (End::Done, None, *revision, *existed),
        Outcome::Mismatch => (End::Mismatch, None, None, None),
        Outcome::Failed => (End::Failed, None, None, None),
        Outcome::Unknown => (End::Unknown, None, None, None),
    };
    let returned = (op.returned != u64::MAX).then_some(op.returned);
    let (key, client, called) = (Text::of(key), op.client, op.called);
    let line = Line {
        key,
        client,
        action,
        value,
        condition,
        outcome,
        seen,
        revision,
        existed,
        called,
        returned,
    };
    serde_json::to_string(&line).expect("numbers, names and text are JSON")
}

/// Reads what [`write_line`] wrote; empty lines are passed over.
///
/// # Errors
/// The number of the first line that is none, and why.
pub fn read_lines(text: &str) -> Result<History, String> {
    let mut history = History::default();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let (key, op) = read(line).map_err(|why| format!("line {number}: {why}"))?;
        history.take(&key, op);
    }
    Ok(history)
}

fn read(line: &str) -> Result<(Bytes, Operation), String> {
    let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let key = line.key.read()?;
    let expect = match line.condition {
        None => None,
        Some(If::Absent) => Some(Expect::Absent),
        Some(If::Present) => Some(Expect::Present),
        Some(If::Value(text)) => Some(Expect::Value(text.read()?)),
    };
    let action = match (line.action, line.value, expect) {
        (What::Get, None, None) => Action::Get,
        (What::Put, Some(value), expect) => Action::Put { value: value.read()?, expect },
        (What::Delete, None, expect) => Action::Delete { expect },
        (What::Put, None, _) => return Err("a put without a value".into()),
        (What::Get, ..) => return Err("a get with a value or a condition".into()),
        (What::Delete, Some(_), _) => return Err("a delete with a value".into()),
    };
    let seen = line.seen.map(Text::read).transpose()?;
    let outcome = match (line.outcome, action == Action::Get) {
        (End::Read, true) => Outcome::Read { value: seen, revision: line.revision },
        (End::Done, false) => Outcome::Done { revision: line.revision, existed: line.existed },
        (End::Mismatch, false) => Outcome::Mismatch,
        (End::Failed, _) => Outcome::Failed,
        (End::Unknown, _) => Outcome::Unknown,
        (End::Read, false) | (End::Done | End::Mismatch, true) => {
            return Err("an answer that does not fit its question".into());
        }
    };
    let returned = match (line.returned, &outcome) {
        (Some(returned), _) if returned < line.called => {
            return Err("an answer before its request".into());
        }
        (Some(returned), _) => returned,
        (None, Outcome::Unknown) => u64::MAX,
        (None, _) => return Err("an answer without its time".into()),
    };
    Ok((key, Operation { client: line.client, action, outcome, called: line.called, returned }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut history = History::default();
        history.push((1, 2), "a", Action::put_if("x", Expect::Absent), Outcome::done());
        history.push((3, 4), "a", Action::Get, Outcome::read(Some(b"\xff")));
        let last = Action::Delete { expect: Some(Expect::Value(b"x".to_vec())) };
        history.begin(7, b"\xfe", last, 5);
        let lines = |history: &History| -> Vec<String> {
            let each = |(key, ops): (&[u8], &[Operation])| -> Vec<String> {
                ops.iter().map(|op| write_line(key, op)).collect()
            };
            history.keys().flat_map(each).collect()
        };
        let written = lines(&history);
        let read = read_lines(&written.join("\n")).expect("our own lines");
        assert_eq!(lines(&read), written);
        assert_eq!((read.len(), read.unknown()), (3, 1));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "{",
            r#"{"key":"a","action":"put","outcome":"done","called":1,"returned":2}"#,
            r#"{"key":"a","action":"get","outcome":"done","called":1,"returned":2}"#,
            r#"{"key":"a","action":"get","outcome":"read","called":3,"returned":2}"#,
            r#"{"key":"a","action":"get","outcome":"read","called":3}"#,
        ] {
            assert!(read_lines(line).is_err_and(|why| why.starts_with("line 1")), "{line}");
        }
    }
}
