//! Layers: defaults, files, environment, flags; and which of them each value came from.
//!
//! Every layer is first read strictly and alone, so that a mistake is reported where it was
//! made, even when a later layer would have covered it. The `config` crate then lays them
//! over each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Table, Value};

use super::check::{check, check_change, complete};
use super::{Config, ConfigError};
use crate::auth::{Access, Directory, read_secrets};
use crate::logs::Switch;
use crate::tls::{Files, Material, Tls};

const DEFAULT: &str = "default";

/// Everything settings can come from, gathered by the caller.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files, later ones over earlier ones.
    pub files: Vec<PathBuf>,
    /// The environment.
    pub env: Vec<(String, String)>,
    /// Flags of the command line, later ones over earlier ones.
    pub flags: Vec<Flag>,
}

/// One setting given on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As the operator wrote it, for messages.
    pub name: &'static str,
    /// What it sets.
    pub kind: FlagKind,
}

/// What a flag sets.
#[derive(Clone, Debug)]
pub enum FlagKind {
    /// A key, from text.
    Key(&'static str, String),
    /// The port of `node.listen`, whatever its address is.
    Port(String),
    /// `cluster.peers`, each `ID=URL`.
    Peers(Vec<String>),
}

impl Flag {
    /// A flag for one key.
    #[must_use]
    pub fn key(name: &'static str, key: &'static str, text: impl Into<String>) -> Self {
        Self { name, kind: FlagKind::Key(key, text.into()) }
    }
}

/// Settings and the layer each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    origins: BTreeMap<String, String>,
}

/// Reads, lays over each other and checks.
///
/// # Errors
/// The first mistake found, ready to print.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let mut layers = Layers::new();
    for path in &sources.files {
        layers.add_file(path)?;
    }
    layers.add_environment(&sources.env)?;
    for flag in &sources.flags {
        layers.add(flag.name, &flag.kind)?;
    }
    let Layers { builder, origins, .. } = layers;
    let mut config = builder
        .build()
        .and_then(config::Config::try_deserialize::<Config>)
        .map_err(|error| ConfigError(format!("the settings do not fit together: {error}")))?;
    complete(&mut config);
    let mut loaded = Loaded { config, origins };
    check(&loaded)?;
    let mut access = read_access(&loaded)?;
    if let Some(material) = read_certificates(&loaded)? {
        if material.knows_nodes() {
            access = access.with_certificates();
        }
        loaded.config.certificates = Tls::new(material);
    }
    loaded.config.access = Access::new(access);
    loaded.config.logs = Switch::new(loaded.config.log.level.filter());
    Ok(loaded)
}

/// Reads the files of `auth`.
fn read_access(loaded: &Loaded) -> Result<Directory, ConfigError> {
    let auth = &loaded.config.auth;
    let blame = |key: &str, path: &Path, why: String| {
        let origin = describe(loaded.origin(key));
        ConfigError(format!("{origin}: {key}: {}: {why}", path.display()))
    };
    let read = |key: &str, path: &Path| {
        std::fs::read_to_string(path).map_err(|error| {
            blame(
                key,
                path,
                format!("cannot be read: {error}; correct the path or its permissions"),
            )
        })
    };
    let mut directory = Directory::default();
    if !auth.tokens.as_os_str().is_empty() {
        let text = read("auth.tokens", &auth.tokens)?;
        directory = Directory::parse(&text)
            .map_err(|error| blame("auth.tokens", &auth.tokens, error.to_string()))?;
    }
    if !auth.peer_secret.as_os_str().is_empty() {
        let text = read("auth.peer_secret", &auth.peer_secret)?;
        let secrets = read_secrets(&text)
            .map_err(|error| blame("auth.peer_secret", &auth.peer_secret, error.to_string()))?;
        directory = directory.with_secrets(secrets);
    }
    Ok(directory)
}

/// Reads the files of `tls`.
fn read_certificates(loaded: &Loaded) -> Result<Option<Material>, ConfigError> {
    let tls = &loaded.config.tls;
    if !tls.is_on() {
        return Ok(None);
    }
    let (cert, key) = (tls.cert.clone(), tls.key.clone());
    let ca = (!tls.ca.as_os_str().is_empty()).then(|| tls.ca.clone());
    Material::read(&Files { cert, key, ca }).map(Some).map_err(|error| {
        let origin = describe(loaded.origin("tls.cert"));
        ConfigError(format!("{origin}: tls: {error}; correct the file or its path"))
    })
}

impl Loaded {
    /// May a process that runs with `running`, bound as that says, take these over?
    ///
    /// # Errors
    /// Why not: TLS would begin or end, or an address that others reach would be unguarded.
    pub fn may_replace(&self, running: &Config) -> Result<(), ConfigError> {
        check_change(self, running)
    }

    /// Where a key's value came from: a file, a variable, a flag or `default`.
    #[must_use]
    pub fn origin(&self, key: &str) -> &str {
        self.origins.get(key).map_or(DEFAULT, String::as_str)
    }

    /// The origin as an operator wants to see it: a default that was derived says from what.
    fn shown(&self, key: &str) -> &str {
        match (key, self.origin(key)) {
            ("node.advertise", DEFAULT) if self.config.cluster.peers.is_empty() => {
                "default, from node.listen"
            }
            ("node.advertise", DEFAULT) => "default, from cluster.peers",
            (_, origin) => origin,
        }
    }

    /// The effective settings as TOML, each with its layer in a comment.
    ///
    /// # Panics
    /// Never: settings that were read can be written.
    #[must_use]
    pub fn print(&self) -> String {
        let text = toml::to_string(&self.config).expect("settings are plain tables");
        let mut section = String::new();
        let mut out = String::new();
        for line in text.lines() {
            out.push_str(line);
            if line == "[[cluster.peers]]" {
                section.clear();
                out.push_str(&format!(" # {}", self.origin("cluster.peers")));
            } else if let Some(name) = line.strip_prefix('[') {
                section = name.trim_end_matches(']').to_owned();
            } else if let Some((key, _)) = line.split_once(" = ")
                && !section.is_empty()
            {
                out.push_str(&format!(" # {}", self.shown(&format!("{section}.{key}"))));
            }
            out.push('\n');
        }
        out
    }
}

/// The layers so far. `listen` is followed along, since `PORT` and `--port` change a part of it.
struct Layers {
    builder: config::ConfigBuilder<config::builder::DefaultState>,
    origins: BTreeMap<String, String>,
    defaults: Table,
    listen: String,
}

impl Layers {
    fn new() -> Self {
        let defaults = Table::try_from(Config::default()).expect("settings are plain tables");
        let mut layers = Self {
            builder: config::Config::builder(),
            origins: BTreeMap::new(),
            listen: Config::default().node.listen.to_string(),
            defaults: defaults.clone(),
        };
        layers.push(DEFAULT, defaults);
        layers
    }

    /// Takes over a layer that was read strictly.
    fn push(&mut self, origin: &str, table: Table) {
        let mut source = Source { values: config::Map::new() };
        for (section, keys) in table {
            let Value::Table(keys) = keys else { continue };
            for (key, value) in keys {
                let key = format!("{section}.{key}");
                if let ("node.listen", Value::String(listen)) = (key.as_str(), &value) {
                    self.listen.clone_from(listen);
                }
                source.values.insert(key.clone(), convert(origin, value));
                self.origins.insert(key, origin.to_owned());
            }
        }
        let builder = std::mem::take(&mut self.builder);
        self.builder = builder.add_source(source);
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let name = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError(format!(
                "{name}: cannot be read: {error}; correct --config or the file's permissions"
            ))
        })?;
        // The strict pass: the message carries line, column and an excerpt.
        toml::from_str::<Config>(&text).map_err(|error| {
            let remedy = if error.message().starts_with("unknown field") {
                "remove the key or correct its spelling"
            } else {
                "correct it"
            };
            let at = error.span().and_then(|span| key_at(&text, span.start));
            let key = at.map(|key| format!("{key}: ")).unwrap_or_default();
            ConfigError(format!(
                "{name}: {key}{}\n{remedy}; config.toml in the repository explains every key",
                error.to_string().trim_end()
            ))
        })?;
        let table = toml::from_str(&text).expect("it was read a moment ago");
        self.push(&name.to_string(), table);
        Ok(())
    }

    /// `MMAPD_SECTION__KEY`, `MMAPD_PEERS` and `PORT`. Other names are somebody else's
    /// (Kubernetes makes `MMAPD_SERVICE_HOST`), unless they miss a key by one underscore.
    fn add_environment(&mut self, env: &[(String, String)]) -> Result<(), ConfigError> {
        let get = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, text)| text.clone());
        if let Some(port) = get("PORT") {
            self.add("PORT", &FlagKind::Port(port))?;
        }
        if let Some(peers) = get("MMAPD_PEERS") {
            let peers = peers.split(',').map(str::trim).filter(|peer| !peer.is_empty());
            self.add("MMAPD_PEERS", &FlagKind::Peers(peers.map(str::to_owned).collect()))?;
        }
        for (name, text) in env {
            let Some(rest) = name.strip_prefix("MMAPD_") else { continue };
            if let Some((section, key)) = rest.split_once("__") {
                let key = format!("{section}.{key}").to_lowercase();
                self.add_text(name, &key, text)?;
            } else if let Some((section, key)) = rest.split_once('_')
                && self.default_of(&section.to_lowercase(), &key.to_lowercase()).is_some()
            {
                return Err(ConfigError(format!(
                    "environment variable {name}: sections end with two underscores; \
                     rename it to MMAPD_{section}__{key}"
                )));
            }
        }
        Ok(())
    }

    fn add(&mut self, origin: &str, kind: &FlagKind) -> Result<(), ConfigError> {
        match kind {
            FlagKind::Key(key, text) => self.add_text(origin, key, text),
            FlagKind::Port(port) => {
                let number: u16 = port.parse().map_err(|_| {
                    ConfigError(format!(
                        "{}: node.listen: the port {port:?} is not a number; \
                         give one from 0 to 65535",
                        describe(origin)
                    ))
                })?;
                let host = self.listen.rsplit_once(':').map_or("127.0.0.1", |(host, _)| host);
                let listen = format!("{host}:{number}");
                self.add_text(origin, "node.listen", &listen)
            }
            FlagKind::Peers(peers) => {
                let peers = peers.iter().map(|peer| parse_peer(origin, peer));
                let peers = Value::Array(peers.collect::<Result<_, _>>()?);
                self.push(origin, table("cluster", "peers", peers));
                Ok(())
            }
        }
    }

    /// One key, from text: read as what its default is.
    fn add_text(&mut self, origin: &str, key: &str, text: &str) -> Result<(), ConfigError> {
        let who = describe(origin);
        let known = key.split_once('.').and_then(|(section, name)| {
            self.default_of(section, name).map(|value| (section, name, value))
        });
        let Some((section, name, default)) = known else {
            return Err(ConfigError(format!(
                "{who}: there is no setting {key}; remove it or correct its spelling \
                 (config.toml in the repository lists every key)"
            )));
        };
        let value = match (default, text.parse::<i64>()) {
            (Value::Array(_), _) => {
                return Err(ConfigError(format!(
                    "{who}: {key} is a list; use MMAPD_PEERS=\"1=http://...,2=http://...\""
                )));
            }
            (Value::Integer(_), Ok(number)) => Value::Integer(number),
            (Value::Boolean(_), _) if text == "true" => Value::Boolean(true),
            (Value::Boolean(_), _) if text == "false" => Value::Boolean(false),
            _ => Value::String(text.to_owned()),
        };
        let example = default.to_string();
        let layer = table(section, name, value);
        Config::deserialize(layer.clone()).map_err(|error| {
            ConfigError(format!(
                "{who}: {key} = {text:?}: {}; correct it (the default is {example})",
                error.message().trim_end()
            ))
        })?;
        self.push(origin, layer);
        Ok(())
    }

    fn default_of(&self, section: &str, key: &str) -> Option<&Value> {
        self.defaults.get(section)?.get(key)
    }
}

/// The key, with its section, on the line around a byte of a file; the section alone when
/// that is what the line is.
fn key_at(text: &str, offset: usize) -> Option<String> {
    let before = text.get(..offset)?;
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    let line = text.get(start..)?.lines().next()?;
    let name = |line: &str| -> Option<String> {
        let inner = line.trim().strip_prefix('[')?.split(']').next()?;
        Some(inner.trim_start_matches('[').trim().to_owned())
    };
    if let Some(section) = name(line) {
        return Some(section);
    }
    let key = line.split_once('=')?.0.trim();
    let section = text.get(..start)?.lines().rev().find_map(name);
    Some(section.map_or_else(|| key.to_owned(), |section| format!("{section}.{key}")))
}

fn table(section: &str, key: &str, value: Value) -> Table {
    let keys = Table::from_iter([(key.to_owned(), value)]);
    Table::from_iter([(section.to_owned(), Value::Table(keys))])
}

fn parse_peer(origin: &str, text: &str) -> Result<Value, ConfigError> {
    let parts = text
        .split_once('=')
        .and_then(|(id, url)| Some((id.trim().parse::<u64>().ok()?, url.trim())))
        .and_then(|(id, url)| Some((i64::try_from(id).ok()?, url)));
    let Some((id, url)) = parts else {
        return Err(ConfigError(format!(
            "{}: cluster.peers: {text:?} is not ID=URL; write for example 2=http://10.0.0.2:3001",
            describe(origin)
        )));
    };
    let fields = [("id", Value::Integer(id)), ("url", Value::String(url.to_owned()))];
    Ok(Value::Table(fields.map(|(key, value)| (key.to_owned(), value)).into_iter().collect()))
}

/// An origin as a message names it: a variable's name says too little alone.
pub(super) fn describe(origin: &str) -> String {
    let is_variable = origin == "PORT" || origin.starts_with("MMAPD_");
    if is_variable { format!("environment variable {origin}") } else { origin.to_owned() }
}

/// A layer as the `config` crate wants it.
#[derive(Clone, Debug)]
struct Source {
    values: config::Map<String, config::Value>,
}

impl config::Source for Source {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, config::Value>, config::ConfigError> {
        Ok(self.values.clone())
    }
}

fn convert(origin: &str, value: Value) -> config::Value {
    let kind = match value {
        Value::String(text) => config::ValueKind::String(text),
        Value::Integer(number) => config::ValueKind::I64(number),
        Value::Float(number) => config::ValueKind::Float(number),
        Value::Boolean(flag) => config::ValueKind::Boolean(flag),
        Value::Datetime(time) => config::ValueKind::String(time.to_string()),
        Value::Array(list) => {
            config::ValueKind::Array(list.into_iter().map(|value| convert(origin, value)).collect())
        }
        Value::Table(table) => config::ValueKind::Table(
            table.into_iter().map(|(key, value)| (key, convert(origin, value))).collect(),
        ),
    };
    config::Value::new(Some(&origin.to_owned()), kind)
}
