//! `mmapd export`: all keys as one JSON map.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::exit::{Exit, Fatal};
use super::place::{Paths, bar, stdout, written};
use crate::node::node_ids;
use crate::node::offline::Newest;

/// {"key":"value",...} in order, of the newest state that is certain: the last checkpoint and
/// what the log holds beyond it; all of that for a node alone, else what is known to be
/// committed - so give the --config of a node that has peers.
#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    paths: Paths,
    /// Write to this file, which appears when it is complete
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// How to write values that are not UTF-8; base64: {"key":{"base64":"..."}}
    #[arg(long, value_name = "NAME", value_enum)]
    encoding: Option<Encoding>,
    /// Leave out keys and values that cannot be written
    #[arg(long)]
    skip_binary: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Encoding {
    Base64,
}

pub(super) fn export(args: &ExportArgs) -> Result<Exit, Fatal> {
    let (config, files) = args.paths.open()?;
    let newest = files.newest(&node_ids(&config.members()), config.storage.map_max)?;
    let Some(path) = &args.output else {
        let mut out = stdout();
        let outcome = write_map(args, &newest, &mut out);
        return finish(&newest, outcome, |result| written(result.and_then(|()| out.flush())));
    };
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    let failed = |error: io::Error| Fatal::failure(format!("{}: {error}", path.display()));
    let mut out = BufWriter::new(File::create(&draft).map_err(failed)?);
    let outcome = write_map(args, &newest, &mut out);
    let done = finish(&newest, outcome, |result| {
        result.and_then(|()| publish(out, &draft, path)).map_err(failed)
    });
    if done.is_err() {
        // It may be gone already; the failure is what is told.
        let _ = fs::remove_file(&draft);
    }
    done
}

fn publish(out: BufWriter<File>, draft: &Path, path: &Path) -> io::Result<()> {
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(draft, path)
}

/// What stopped a map from being written.
enum Stop {
    Output(io::Error),
    Fatal(Fatal),
}

fn finish(
    newest: &Newest,
    outcome: Result<u64, Stop>,
    end: impl FnOnce(io::Result<()>) -> Result<(), Fatal>,
) -> Result<Exit, Fatal> {
    let skipped = match outcome {
        Ok(skipped) => {
            end(Ok(()))?;
            skipped
        }
        Err(Stop::Output(error)) => {
            end(Err(error))?;
            return Ok(Exit::Normal);
        }
        Err(Stop::Fatal(fatal)) => return Err(fatal),
    };
    let mut err = io::stderr();
    if skipped > 0 {
        let _ = writeln!(err, "mmapd: left out {skipped} keys that are not UTF-8");
    }
    if newest.certain < newest.last {
        let _ = writeln!(
            err,
            "mmapd: entries {} to {} are left out: nothing here says that a majority has them",
            newest.certain.next(),
            newest.last
        );
    }
    Ok(Exit::Normal)
}

/// Returns how many keys were left out.
fn write_map(args: &ExportArgs, newest: &Newest, out: &mut dyn Write) -> Result<u64, Stop> {
    if !args.skip_binary {
        // Before the first byte is written: half a map is worse than none.
        let mut stop = None;
        let looked = newest.scan(|item| {
            let key = std::str::from_utf8(item.key).is_ok();
            let value = args.encoding.is_some() || std::str::from_utf8(item.record.value).is_ok();
            if !key || !value {
                stop = Some(Stop::Fatal(binary(item.key, key)));
            }
            stop.is_none()
        });
        looked.map_err(|error| Stop::Fatal(error.into()))?;
        stop.map_or(Ok(()), Err)?;
    }
    let progress = bar(newest.view.keys(), "exporting");
    let (mut skipped, mut first) = (0, true);
    let mut result = out.write_all(b"{").map_err(Stop::Output);
    let scanned = newest.scan(|item| {
        progress.inc(1);
        let value = item.record.value;
        let (key, text) = (std::str::from_utf8(item.key), std::str::from_utf8(value));
        let value = match (&args.encoding, text) {
            (_, Ok(text)) => Some(serde_json::json!(text)),
            (Some(Encoding::Base64), Err(_)) => {
                Some(serde_json::json!({"base64": STANDARD.encode(value)}))
            }
            (None, Err(_)) => None,
        };
        let (Ok(key), Some(value)) = (key, value) else {
            skipped += 1;
            return true;
        };
        let comma = if std::mem::take(&mut first) { "\n" } else { ",\n" };
        let line = format!("{comma}{}:{value}", serde_json::json!(key));
        result = out.write_all(line.as_bytes()).map_err(Stop::Output);
        result.is_ok()
    });
    progress.finish_and_clear();
    result?;
    scanned.map_err(|error| Stop::Fatal(error.into()))?;
    let end: &[u8] = if first { b"}\n" } else { b"\n}\n" };
    out.write_all(end).map_err(Stop::Output)?;
    Ok(skipped)
}

fn binary(key: &[u8], key_is_text: bool) -> Fatal {
    let name = key.escape_ascii();
    let message = if key_is_text {
        format!(
            "the value of key \"{name}\" is not UTF-8, which a JSON map cannot hold; use \
             --encoding base64, or --skip-binary to leave such keys out"
        )
    } else {
        format!(
            "key \"{name}\" is not UTF-8, which a JSON map cannot hold; use --skip-binary to \
             leave such keys out, or `mmapd dump`, which has them"
        )
    };
    Fatal { exit: Exit::Corrupt, message }
}
