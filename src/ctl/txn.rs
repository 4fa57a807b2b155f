//! `mmapctl txn`: if all comparisons hold then these steps, else those, in one revision.

use std::io::{IsTerminal, Read};
use std::time::Duration;

use clap::Args;

use super::endpoints::span;
use super::keys::Fence;
use super::show;
use super::{Common, Failure, Output};
use crate::client::{Cmp, Compare, Op, OpResult, Txn as Request};

/// How lines are written; shown by `--help`.
const HELP: &str = "\
Each line is a comparison or a step, in words as of a shell:

  if exists KEY | if missing KEY
  if value KEY =|!=|<|> VALUE
  if version|create|mod KEY =|!=|<|> NUMBER
  put KEY VALUE [ttl=TIME] [lease=ID|lease=new]
  get KEY | get-prefix PREFIX
  del KEY | del-prefix PREFIX
  lease TIME        what `lease=new` in later lines means
  else              steps after it are for when a comparison does not hold

Example: mmapctl txn 'if value state = idle' 'put state busy' else 'get state'";

/// The lines.
#[derive(Args, Debug)]
#[command(after_help = HELP)]
pub(super) struct Txn {
    /// Lines; without any, standard input has them.
    line: Vec<String>,
    /// Ends with exit code 4 when a comparison does not hold.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    fence: Fence,
}

impl Txn {
    /// Prints what was done.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let mut request = self.fence.client(common)?.txn();
        let mut otherwise = false;
        for (number, line) in (1..).zip(self.lines()?) {
            let wrong = |why| Failure::usage(format!("line {number}, {line:?}: {why}"));
            let words = shlex::split(&line).ok_or_else(|| wrong("a quote is open".into()))?;
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match words.as_slice() {
                [] => {}
                ["else"] if !otherwise => otherwise = true,
                ["if", rest @ ..] if !otherwise => {
                    request = request.when(compare(rest).map_err(wrong)?);
                }
                words => request = step(request, otherwise, op(words).map_err(wrong)?),
            }
        }
        let done = request.commit().await?;
        if common.output == Output::Json {
            show::json(&done)?;
        } else {
            let held = if done.succeeded { "the comparisons hold" } else { "they do not all hold" };
            show::line(&format!("{held}, revision {}", done.revision))?;
            for result in &done.results {
                show::line(&said(result))?;
            }
        }
        if self.check && !done.succeeded {
            return Err(Failure::precondition("a comparison does not hold"));
        }
        Ok(())
    }

    fn lines(&self) -> Result<Vec<String>, Failure> {
        if !self.line.is_empty() {
            return Ok(self.line.clone());
        }
        let mut input = std::io::stdin();
        if input.is_terminal() {
            show::aside("lines of the transaction, then Ctrl-D");
        }
        let mut text = String::new();
        input
            .read_to_string(&mut text)
            .map_err(|error| Failure::other(format!("standard input: {error}")))?;
        Ok(text.lines().map(str::to_owned).collect())
    }
}

fn step(request: Request, otherwise: bool, op: Op) -> Request {
    if otherwise { request.or_else(op) } else { request.then(op) }
}

fn compare(words: &[&str]) -> Result<Compare, String> {
    let (what, key, rest) = match words {
        ["exists", key] => return Ok(Compare::exists(key, true)),
        ["missing", key] => return Ok(Compare::exists(key, false)),
        [what, key, rest @ ..] => (*what, *key, rest),
        _ => return Err("a comparison names a key".into()),
    };
    let [cmp, right] = rest else {
        return Err("`if WHAT KEY = SOMETHING` is needed".into());
    };
    let cmp = match *cmp {
        "=" | "==" => Cmp::Eq,
        "!=" => Cmp::Ne,
        "<" => Cmp::Lt,
        ">" => Cmp::Gt,
        other => return Err(format!("{other:?} is none of = != < >")),
    };
    let number = || right.parse().map_err(|_| format!("{right:?} is no number"));
    match what {
        "value" => Ok(Compare::value(key, cmp, right)),
        "version" => Ok(Compare::version(key, cmp, number()?)),
        "create" => Ok(Compare::create_revision(key, cmp, number()?)),
        "mod" => Ok(Compare::mod_revision(key, cmp, number()?)),
        other => Err(format!("{other:?} is none of exists missing value version create mod")),
    }
}

fn op(words: &[&str]) -> Result<Op, String> {
    match words {
        ["put", key, value, more @ ..] => {
            more.iter().try_fold(Op::put(key, value), |op, word| match word.split_once('=') {
                Some(("ttl", time)) => Ok(op.ttl(span(time)?)),
                Some(("lease", "new")) => Ok(op.on_new_lease()),
                Some(("lease", id)) => {
                    Ok(op.on_lease(id.parse().map_err(|_| format!("{id:?} is no lease"))?))
                }
                _ => Err(format!("{word:?} is none of ttl=TIME lease=ID")),
            })
        }
        ["get", key] => Ok(Op::get(key)),
        ["get-prefix", prefix] => Ok(Op::get_prefix(prefix)),
        ["del", key] => Ok(Op::delete(key)),
        ["del-prefix", prefix] => Ok(Op::delete_prefix(prefix)),
        ["lease", time] => span(time).map(|time: Duration| Op::lease(time)),
        _ => Err("no step is written so; see --help".into()),
    }
}

fn said(result: &OpResult) -> String {
    match result {
        OpResult::Put(done) if done.created => "put: created".into(),
        OpResult::Put(done) => format!("put: version {}", done.version),
        OpResult::Delete { deleted, .. } => format!("del: {deleted}"),
        OpResult::Get { items, .. } if items.is_empty() => "get: nothing".into(),
        OpResult::Get { items, more } => {
            let one = |item: &crate::client::Entry| {
                format!("get: {} {}", show::text(&item.key), show::short(&item.value))
            };
            let mut all: Vec<String> = items.iter().map(one).collect();
            all.extend(more.then(|| "get: and more".to_owned()));
            all.join("\n")
        }
        OpResult::Lease(lease) => format!("lease: {}", lease.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_make_no_sense_say_why() {
        for (words, why) in [
            (&["value", "k"][..], "`if WHAT KEY = SOMETHING` is needed"),
            (&["value", "k", "~", "v"], "\"~\" is none of = != < >"),
            (&["mod", "k", "=", "v"], "\"v\" is no number"),
            (&["size", "k", "=", "1"], "\"size\" is none of"),
            (&[], "a comparison names a key"),
        ] {
            let error = compare(words).expect_err("it makes no sense");
            assert!(error.starts_with(why), "{error}");
        }
        assert!(op(&["put", "k"]).is_err());
        assert!(op(&["put", "k", "v", "ttl=soon"]).is_err());
        assert!(op(&["put", "k", "v", "ttl=5s", "lease=new"]).is_ok());
    }
}
