use std::fs;
use std::path::Path;

use super::*;

const REFERENCE: &str = include_str!("../../config.toml");

fn sources(files: &[&Path], env: &[(&str, &str)], flags: &[Flag]) -> Sources {
    Sources {
        files: files.iter().map(|path| path.to_path_buf()).collect(),
        env: env.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect(),
        flags: flags.to_vec(),
    }
}

fn from_env(env: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    load(&sources(&[], env, &[]))
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_reference_file_equals_the_defaults_and_explains_every_key() {
    let reference: Config = toml::from_str(REFERENCE).unwrap();
    assert_eq!(reference, Config::default());
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    for (section, keys) in &defaults {
        let start = REFERENCE.find(&format!("\n[{section}]\n")).expect(section);
        let body = &REFERENCE[start + 2..];
        let body = &body[..body.find("\n[").unwrap_or(body.len())];
        for (key, _) in keys.as_table().unwrap() {
            assert!(body.contains(&format!("\n{key} = ")), "config.toml lacks {section}.{key}");
        }
    }
}

#[test]
fn nothing_given_is_one_node_on_port_3001() {
    let config = load(&Sources::default()).unwrap().config;
    let url = "http://127.0.0.1:3001".to_owned();
    assert_eq!(config.node.advertise, url);
    assert_eq!(config.members(), BTreeMap::from([(1, url)]));
    assert_eq!((config.raft.heartbeat_ticks(), config.raft.election_ticks()), (4, 20));
}

#[test]
fn the_shipped_nodes_form_one_cluster() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let [a, b, c] = [1, 2, 3].map(|id| {
        let path = dir.join(format!("node{id}.toml"));
        let config = load(&sources(&[&path], &[], &[])).unwrap().config;
        assert_eq!(config.node.id, id);
        assert_eq!(config.node.advertise, config.members()[&id]);
        config
    });
    assert_eq!(a.cluster, b.cluster);
    assert_eq!(a.cluster, c.cluster);
    assert_eq!(a.members().len(), 3);
}

#[test]
fn later_layers_win_and_each_value_knows_where_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let first = file(
        &dir,
        "a.toml",
        "[limits]\nvalue = \"1MiB\"\nheaders = 10\n[raft]\nmax_inflight = 1\n\
         [[cluster.peers]]\nid = 1\nurl = \"http://a:1\"\n\
         [[cluster.peers]]\nid = 2\nurl = \"http://b:1/\"\n",
    );
    let second = file(&dir, "b.toml", "[limits]\nheaders = 20\n[raft]\nmax_inflight = 2\n");
    let env = [("MMAPD_RAFT__MAX_INFLIGHT", "3"), ("MMAPD_LOG__LEVEL", "debug")];
    let flags = [Flag::key("--log-level", "log.level", "trace")];
    let loaded = load(&sources(&[&first, &second], &env, &flags)).unwrap();
    let config = &loaded.config;
    assert_eq!(config.limits.value, 1 << 20);
    assert_eq!(config.limits.headers, 20);
    assert_eq!(config.raft.max_inflight, 3);
    assert_eq!(config.log.level, Level::Trace);
    assert_eq!(
        config.members(),
        BTreeMap::from([(1, "http://a:1".into()), (2, "http://b:1".into())])
    );
    assert_eq!(config.node.advertise, "http://a:1", "derived from the list of peers");
    assert_eq!(loaded.origin("limits.value"), first.display().to_string());
    assert_eq!(loaded.origin("limits.headers"), second.display().to_string());
    assert_eq!(loaded.origin("raft.max_inflight"), "MMAPD_RAFT__MAX_INFLIGHT");
    assert_eq!(loaded.origin("log.level"), "--log-level");
    assert_eq!(loaded.origin("raft.tick"), "default");
}

#[test]
fn a_later_list_of_peers_replaces_an_earlier_one() {
    let peers = |list: &[&str]| Flag {
        name: "--peer",
        kind: FlagKind::Peers(list.iter().map(|peer| (*peer).into()).collect()),
    };
    let env = [("MMAPD_PEERS", "1=http://a:1, 2=http://b:1 ,3=http://c:1")];
    assert_eq!(from_env(&env).unwrap().config.members().len(), 3);
    let flags = [peers(&["1=http://d:1"])];
    let config = load(&sources(&[], &env, &flags)).unwrap().config;
    assert_eq!(config.members(), BTreeMap::from([(1, "http://d:1".into())]));
}

#[test]
fn a_port_changes_only_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "a.toml", "[node]\nlisten = \"[::1]:4000\"\n");
    let port = |text: &str| Flag { name: "--port", kind: FlagKind::Port(text.into()) };
    for (env, flags, want) in [
        (&[][..], &[][..], "[::1]:4000"),
        (&[("PORT", "5000")], &[], "[::1]:5000"),
        (&[("PORT", "5000")], &[port("6000")], "[::1]:6000"),
        (&[("PORT", "5000"), ("MMAPD_NODE__LISTEN", "127.0.0.2:7000")], &[], "127.0.0.2:7000"),
    ] {
        let config = load(&sources(&[&path], env, flags)).unwrap().config;
        assert_eq!(config.node.listen.to_string(), want);
        assert_eq!(config.node.advertise, format!("http://{want}"));
    }
}

#[test]
fn printed_settings_load_again_and_name_their_layers() {
    let env = [("MMAPD_PEERS", "1=http://a:1,2=http://b:1"), ("MMAPD_LIMITS__VALUE", "3MiB")];
    let loaded = from_env(&env).unwrap();
    let printed = loaded.print();
    for line in [
        "value = \"3MiB\" # MMAPD_LIMITS__VALUE\n",
        "[[cluster.peers]] # MMAPD_PEERS\n",
        "heartbeat = \"100ms\" # default\n",
        "advertise = \"http://a:1\" # default, from cluster.peers\n",
    ] {
        assert!(printed.contains(line), "{line}{printed}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = file(&dir, "printed.toml", &printed);
    assert_eq!(load(&sources(&[&path], &[], &[])).unwrap().config, loaded.config);
}

#[test]
fn mistakes_in_files_name_the_file_the_line_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (text, want) in [
        ("[node]\nidd = 2\n", &["node.idd: ", "line 2", "`id`", "remove the key"][..]),
        ("[nodes]\nid = 2\n", &["nodes: ", "line 1", "remove the key"]),
        ("[node]\nid = \"2\"\n", &["node.id: ", "line 2", "id = \"2\"", "correct it"]),
        ("[node]\nid = -1\n", &["line 2", "id = -1", "correct it"]),
        ("[raft]\ntick = 25\n", &["line 2", "tick = 25", "\"150ms\""]),
        ("[raft]\ntick = \"25\"\n", &["line 2", "duration with its unit"]),
        ("[limits]\nvalue = \"1MB\"\n", &["line 2", "size with its unit"]),
        ("[log]\nlevel = \"loud\"\n", &["line 2", "`loud`", "`info`"]),
        ("[[cluster.peers]]\nid = 1\n", &["cluster.peers: ", "missing field `url`"]),
        ("[node\n", &["line 1", "correct it"]),
    ] {
        let path = file(&dir, "bad.toml", text);
        let message = load(&sources(&[&path], &[], &[])).unwrap_err().to_string();
        assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
        for part in want {
            assert!(message.contains(part), "{text:?} should say {part:?}:\n{message}");
        }
    }
    let missing = dir.path().join("missing.toml");
    let message = load(&sources(&[&missing], &[], &[])).unwrap_err().to_string();
    assert!(message.contains("missing.toml: cannot be read"), "{message}");
}

#[test]
fn mistakes_in_the_environment_name_the_variable_and_the_remedy() {
    for (name, text, want) in [
        ("MMAPD_NODE__IDD", "2", "there is no setting node.idd"),
        ("MMAPD_NODE__ID", "two", "the default is 1"),
        ("MMAPD_RAFT__TICK", "25", "such as \"150ms\""),
        ("MMAPD_NODE__LISTEN", "localhost", "the default is \"127.0.0.1:3001\""),
        ("MMAPD_NODE_ID", "2", "rename it to MMAPD_NODE__ID"),
        ("MMAPD_CLUSTER__PEERS", "1", "use MMAPD_PEERS"),
        ("MMAPD_PEERS", "http://a:1", "is not ID=URL"),
        ("PORT", "seventy", "from 0 to 65535"),
        ("PORT", "70000", "from 0 to 65535"),
    ] {
        let message = from_env(&[(name, text)]).unwrap_err().to_string();
        assert!(message.starts_with(&format!("environment variable {name}: ")), "{message}");
        assert!(message.contains(want), "{name}={text} should say {want:?}: {message}");
    }
    let foreign = [("MMAPD_SERVICE_HOST", "10.0.0.1"), ("MMAPD_PORT_3001_TCP", "tcp://x")];
    assert!(from_env(&foreign).is_ok(), "Kubernetes sets these for a service called mmapd");
}

#[test]
fn impossible_values_name_the_variable_the_key_and_the_remedy() {
    for (env, key, want) in [
        (&[("MMAPD_NODE__ID", "0")][..], "node.id", "from 1 on"),
        (&[("MMAPD_NODE__LISTEN", "0.0.0.0:3001")], "node.listen", "set node.advertise"),
        (&[("MMAPD_NODE__ADVERTISE", "http://0.0.0.0:1")], "node.advertise", "cannot reach"),
        (
            &[("MMAPD_NODE__ADVERTISE", "https://a:1")],
            "node.advertise",
            "does not begin with http://",
        ),
        (&[("MMAPD_NODE__ADVERTISE", "a:1")], "node.advertise", "write http://host:port"),
        (&[("MMAPD_NODE__ADVERTISE", "http://a:1/x")], "node.advertise", "without a path"),
        (&[("MMAPD_NODE__ADVERTISE", "http://u@a:1")], "node.advertise", "http://host:port"),
        (&[("MMAPD_PEERS", "2=http://a:1")], "cluster.peers", "no node 1"),
        (&[("MMAPD_PEERS", "0=http://a:1")], "cluster.peers", "id 0"),
        (&[("MMAPD_PEERS", "1=http://a:1,1=http://b:1")], "cluster.peers", "its own"),
        (&[("MMAPD_PEERS", "1=http://a:1,2=http://a:1")], "cluster.peers", "correct one"),
        (&[("MMAPD_PEERS", "1=http://a")], "cluster.peers", "http://host:port"),
        (&[("MMAPD_RAFT__HEARTBEAT", "200ms")], "raft.heartbeat", "a third"),
        (&[("MMAPD_RAFT__ELECTION_TIMEOUT", "300ms")], "raft.election_timeout", "a third"),
        (&[("MMAPD_RAFT__TICK", "30ms")], "raft.tick", "whole number of ticks"),
        (&[("MMAPD_RAFT__TICK", "0ms")], "raft.tick", "1ms to 24h"),
        (&[("MMAPD_STORAGE__DB", "data/log/db")], "storage.db", "inside the log directory"),
        (&[("MMAPD_STORAGE__DB", "./data/x/../log")], "storage.db", "path of its own"),
        (&[("MMAPD_STORAGE__LOG", "data/db.mmapd/log")], "storage.log", "is a file"),
        (&[("MMAPD_STORAGE__SEGMENT", "4KiB")], "storage.segment", "at least 64KiB"),
        (&[("MMAPD_STORAGE__SEGMENT", "65KiB")], "storage.segment", "round it up"),
        (&[("MMAPD_STORAGE__MAP_MAX", "1GiB")], "storage.map_max", "at least storage.quota"),
        (&[("MMAPD_LIMITS__VALUE", "17MiB")], "limits.value", "at most"),
        (&[("MMAPD_LIMITS__REQUEST_TIMEOUT", "2m")], "limits.request_timeout", "raise"),
        (&[("MMAPD_LIMITS__CONNECTIONS", "0")], "limits.connections", "at least 1"),
    ] {
        let message = from_env(env).unwrap_err().to_string();
        let (name, _) = env[0];
        assert!(message.starts_with(&format!("environment variable {name}: {key}: ")), "{message}");
        assert!(message.contains(want), "{env:?} should say {want:?}: {message}");
    }
}

#[test]
fn the_readme_names_every_key() {
    let readme = include_str!("../../README.md");
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    for (section, keys) in &defaults {
        for (key, _) in keys.as_table().unwrap() {
            let named = [format!("`{section}.{key}`"), format!("`{key}`")];
            assert!(
                named.iter().any(|name| readme.contains(name)),
                "README.md lacks {section}.{key}"
            );
        }
    }
}

#[test]
fn a_lease_is_off_and_shorter_than_the_promise() {
    assert_eq!(load(&Sources::default()).unwrap().config.raft.lease_span(), None);
    let on = from_env(&[("MMAPD_RAFT__LEASE", "true")]).unwrap().config.raft;
    assert_eq!(on.lease_span(), Some(Duration::from_micros(427_500)), "95 % of 18 ticks");
    let drift = [("MMAPD_RAFT__LEASE", "true"), ("MMAPD_RAFT__CLOCK_DRIFT_PERCENT", "51")];
    let refused = from_env(&drift).unwrap_err().to_string();
    assert!(refused.contains("at most 50"), "{refused}");
    assert!(from_env(&[("MMAPD_RAFT__LEASE", "maybe")]).is_err());
}
