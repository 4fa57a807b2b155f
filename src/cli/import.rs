//! `mmapd import`: a new store from a JSON map.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::exit::{Exit, Fatal};
use super::place::{Counted, Place, bar};
use crate::config::Config;
use crate::node::import::{ImportError, Importer, leftovers};

/// What the older route for writing, which took text too, stores with it.
const TEXT: &str = "text/plain; charset=utf-8";

/// Reads {"key":"value",...}, also {"key":{"base64":"..."}}, into a store that does not exist
/// yet, with the node and the paths of the settings. Of a key that comes twice the last wins.
#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// The JSON; - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// It has one object a line, as from `mmapd dump`: lines of type "key" are taken
    #[arg(long)]
    lines: bool,
    #[command(flatten)]
    place: Place,
}

pub(super) fn import(args: &ImportArgs) -> Result<Exit, Fatal> {
    let config = args.place.load()?;
    let members = config.members().len();
    if members > 1 {
        let message = format!(
            "the settings name {members} members, and their logs must be equal from the start; \
             import on a node alone, or send the keys to the running cluster with PUT /v1/keys"
        );
        return Err(Fatal { exit: Exit::Config, message });
    }
    let name = args.file.display().to_string();
    let unreadable = |error: io::Error| Fatal {
        exit: Exit::Io,
        message: format!("{name} cannot be read: {error}"),
    };
    let (input, bytes): (Box<dyn Read>, u64) = if name == "-" {
        (Box::new(io::stdin().lock()), 0)
    } else {
        let file = File::open(&args.file).map_err(unreadable)?;
        let bytes = file.metadata().map_err(unreadable)?.len();
        (Box::new(file), bytes)
    };
    let progress = bar(bytes, "importing");
    let input = Counted { input, progress: progress.clone() };
    let input = BufReader::with_capacity(1 << 16, input);
    let outcome = build(&config, |importer| match args.lines {
        true => read_lines(input, importer),
        false => read_map(input, importer),
    });
    progress.finish_and_clear();
    let outcome = outcome.map_err(|problem| match problem {
        Problem::Json(error) if error.is_io() => unreadable(error.into()),
        Problem::Json(error) => {
            let message = format!("{name}: {error}; nothing was imported");
            Fatal { exit: Exit::Corrupt, message }
        }
        Problem::Line(number, error) => {
            let message = format!("{name}: line {number}: {error}; nothing was imported");
            Fatal { exit: Exit::Corrupt, message }
        }
        Problem::Read(error) => unreadable(error),
        Problem::Import(error) => error.into(),
    })?;
    let _ = writeln!(
        io::stderr(),
        "mmapd: imported {} keys; the store is at revision {}",
        outcome.keys,
        outcome.revision
    );
    Ok(Exit::Normal)
}

impl From<ImportError> for Fatal {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Store(error) => error.into(),
            ImportError::NotEmpty(_) => Self { exit: Exit::Usage, message: error.to_string() },
            ImportError::Limit(message) => Self { exit: Exit::Corrupt, message },
        }
    }
}

/// Why the keys did not all arrive.
enum Problem {
    Json(serde_json::Error),
    Line(u64, String),
    Read(io::Error),
    Import(ImportError),
}

impl From<ImportError> for Problem {
    fn from(error: ImportError) -> Self {
        Self::Import(error)
    }
}

/// Makes a store whole or not at all.
fn build(
    config: &Config,
    fill: impl FnOnce(&mut Importer) -> Result<(), Problem>,
) -> Result<crate::node::import::Imported, Problem> {
    let mut importer = Importer::begin(config)?;
    let filled = fill(&mut importer);
    let done = match filled {
        Ok(()) => importer.finish().map_err(|error| Problem::Import(error.into())),
        Err(problem) => {
            drop(importer);
            Err(problem)
        }
    };
    let (dir, file) = leftovers(config);
    // What is still there is no part of a store, and the next import removes it as well.
    let _ = fs::remove_dir_all(dir);
    let _ = fs::remove_file(&file);
    let _ = fs::remove_file({
        let mut lock = file.into_os_string();
        lock.push(".new");
        lock
    });
    done
}

fn read_map(input: impl Read, importer: &mut Importer) -> Result<(), Problem> {
    let mut json = serde_json::Deserializer::from_reader(input);
    let mut failed = None;
    let read = Keys { importer, failed: &mut failed }.deserialize(&mut json);
    let read = read.and_then(|()| json.end());
    match failed {
        Some(error) => Err(error.into()),
        None => read.map_err(Problem::Json),
    }
}

/// Takes a map key by key, so that only one value is in memory.
struct Keys<'a> {
    importer: &'a mut Importer,
    /// A failure of the store, which says nothing of the JSON.
    failed: &'a mut Option<ImportError>,
}

impl<'de> DeserializeSeed<'de> for Keys<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Keys<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of keys and values")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let put = match map.next_value::<Given>()? {
                Given::Text(text) => self.importer.put(key.as_bytes(), text.as_bytes(), TEXT),
                Given::Bytes(bytes) => self.importer.put(key.as_bytes(), &bytes, ""),
            };
            match put {
                Ok(()) => {}
                Err(ImportError::Limit(why)) => return Err(de::Error::custom(why)),
                Err(error) => {
                    *self.failed = Some(error);
                    return Err(de::Error::custom("the store failed"));
                }
            }
        }
        Ok(())
    }
}

/// A value in the map.
enum Given {
    Text(String),
    Bytes(Vec<u8>),
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Given;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or {\"base64\":\"...\"}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Given, E> {
                Ok(Given::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Given, E> {
                Ok(Given::Text(text))
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Given, M::Error> {
                let expected = || de::Error::custom("a value is a string or {\"base64\":\"...\"}");
                let Some((name, text)) = map.next_entry::<String, String>()? else {
                    return Err(expected());
                };
                if name != "base64" || map.next_key::<String>()?.is_some() {
                    return Err(expected());
                }
                STANDARD.decode(text).map(Given::Bytes).map_err(de::Error::custom)
            }
        }
        json.deserialize_any(Either)
    }
}

/// A line of `mmapd dump`, as far as it matters here.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    key: Option<String>,
    key_b64: Option<String>,
    value: Option<String>,
    encoding: Option<String>,
    content_type: Option<String>,
}

impl Line {
    fn key(&self) -> Result<Vec<u8>, String> {
        match (&self.key, &self.key_b64) {
            (Some(key), None) => Ok(key.clone().into_bytes()),
            (None, Some(key)) => STANDARD.decode(key).map_err(|error| error.to_string()),
            _ => Err("a key has one of key and key_b64".to_owned()),
        }
    }

    fn value(&self) -> Result<Vec<u8>, String> {
        match (&self.value, self.encoding.as_deref()) {
            (Some(value), Some("utf-8")) => Ok(value.clone().into_bytes()),
            (Some(value), Some("base64")) => {
                STANDARD.decode(value).map_err(|error| error.to_string())
            }
            (Some(_), _) => Err("encoding is utf-8 or base64".to_owned()),
            (None, _) => Err("there is no value".to_owned()),
        }
    }
}

fn read_lines(mut input: impl BufRead, importer: &mut Importer) -> Result<(), Problem> {
    let mut text = Vec::new();
    for number in 1.. {
        text.clear();
        if input.read_until(b'\n', &mut text).map_err(Problem::Read)? == 0 {
            break;
        }
        if text.trim_ascii().is_empty() {
            continue;
        }
        let wrong = |why: String| Problem::Line(number, why);
        let line: Line = serde_json::from_slice(&text)
            .map_err(|error| wrong(format!("{error} (of that line)")))?;
        if line.kind != "key" {
            continue;
        }
        let (key, value) = (line.key().map_err(wrong)?, line.value().map_err(wrong)?);
        let content_type = line.content_type.as_deref().unwrap_or_default();
        match importer.put(&key, &value, content_type) {
            Ok(()) => {}
            Err(ImportError::Limit(why)) => return Err(wrong(why)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
