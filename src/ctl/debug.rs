//! `mmapctl debug`: what a report about a cluster should have, in one archive.
//!
//! Only pages for operators are asked for, none that shows a key or a value; the token is taken
//! out of everything. What could not be had is in the archive as the reason why.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::endpoints::{each, span};
use super::show;
use super::{Common, Failure};
use crate::client::Client;
use crate::metrics::{COMMIT, VERSION};

/// Pages asked for, and the names of their files.
const PAGES: &[(&str, &str)] = &[
    ("/v1/status", "status.json"),
    ("/v1/cluster", "cluster.json"),
    ("/livez?verbose", "livez.txt"),
    ("/readyz?verbose", "readyz.txt"),
    ("/metrics", "metrics-1.txt"),
];

/// Where to.
#[derive(Args, Debug)]
pub(super) struct Debug {
    /// The archive.
    #[arg(long, value_name = "FILE", default_value = "mmapd-debug.tar.gz")]
    out: PathBuf,
    /// Between the two readings of the metrics, in seconds or as 500ms.
    #[arg(long, value_parser = span, default_value = "3")]
    interval: Duration,
}

impl Debug {
    /// Asks, and writes the archive.
    pub(super) async fn run(&self, common: &Common) -> Result<(), Failure> {
        let nodes = each(common, Duration::from_secs(5))?;
        let mut files: Vec<(String, String)> = Vec::new();
        for (number, node) in (1..).zip(&nodes) {
            for (path, name) in PAGES {
                files.push((format!("node{number}/{name}"), page(node, path).await));
            }
            files.push((format!("node{number}/openapi-version.json"), openapi(node).await));
        }
        tokio::time::sleep(self.interval).await;
        for (number, node) in (1..).zip(&nodes) {
            let text = page(node, "/metrics").await;
            files.push((format!("node{number}/metrics-2.txt"), text));
        }
        let mut asked = String::new();
        for (number, url) in (1..).zip(&common.endpoints) {
            writeln!(asked, "node{number} {}", without_user(url)).expect("a string grows");
        }
        files.push(("endpoints.txt".into(), asked));
        for url in &common.endpoints {
            // Errors name the node that was asked.
            let (whole, short) = (url.trim_end_matches('/'), without_user(url));
            for (_, text) in &mut files {
                *text = text.replace(whole, &short);
            }
        }
        if let Some(token) = common.token.as_ref().filter(|token| !token.is_empty()) {
            for (_, text) in &mut files {
                *text = text.replace(token.as_str(), "[token]");
            }
        }
        let now = clock_gettime(ClockId::Realtime).tv_sec;
        files.insert(0, ("MANIFEST.json".into(), manifest(&files, now)));
        let wrong =
            |error: std::io::Error| Failure::other(format!("{}: {error}", self.out.display()));
        write(&self.out, &files, now).map_err(wrong)?;
        show::line(&format!("{}: {} files", self.out.display(), files.len()))
    }
}

/// The first line is the status; or what kept us from having one.
async fn page(node: &Client, path: &str) -> String {
    match node.get_text(path).await {
        Ok((200, text)) => text,
        Ok((status, text)) => format!("status {status}\n{text}"),
        Err(error) => format!("error: {error}\n"),
    }
}

/// The version of the description alone: the rest is that of the program.
async fn openapi(node: &Client) -> String {
    match node.get_text("/openapi.json").await {
        Ok((200, text)) => {
            let all: Value = serde_json::from_str(&text).unwrap_or_default();
            json!({"openapi": all["openapi"], "version": all["info"]["version"]}).to_string()
        }
        Ok((status, _)) => format!("status {status}\n"),
        Err(error) => format!("error: {error}\n"),
    }
}

/// A URL may carry a password before its host.
fn without_user(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{}", host.rsplit('@').next().unwrap_or_default())
}

fn manifest(files: &[(String, String)], now: i64) -> String {
    let each = |(name, text): &(String, String)| {
        let digest = Sha256::digest(text.as_bytes());
        let hex = digest.iter().fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("a string grows");
            hex
        });
        json!({"name": name, "bytes": text.len(), "sha256": hex})
    };
    let files: Vec<Value> = files.iter().map(each).collect();
    let all = json!({
        "unix_seconds": now, "mmapctl": VERSION, "commit": COMMIT, "files": files,
    });
    format!("{all:#}\n")
}

fn write(out: &PathBuf, files: &[(String, String)], now: i64) -> std::io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(File::create(out)?, Compression::default()));
    for (name, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or_default());
        header.set_mode(0o644);
        header.set_mtime(u64::try_from(now).unwrap_or_default());
        header.set_cksum();
        archive.append_data(&mut header, format!("mmapd-debug/{name}"), text.as_bytes())?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_loses_its_password() {
        assert_eq!(without_user("http://a:b@host:1/x"), "http://host:1");
        assert_eq!(without_user("https://host:1"), "https://host:1");
    }
}
