use super::*;

/// The names promised to operators, with a type each.
const PROMISED: [(&str, &str); 51] = [
    ("mmapd_alarm", "gauge"),
    ("mmapd_build_info", "gauge"),
    ("mmapd_config_reloads_total", "counter"),
    ("mmapd_db_checkpoint_duration_seconds", "histogram"),
    ("mmapd_db_compaction_duration_seconds", "histogram"),
    ("mmapd_db_compactions_total", "counter"),
    ("mmapd_db_digest_mismatches_total", "counter"),
    ("mmapd_db_live_bytes", "gauge"),
    ("mmapd_db_lost_total", "counter"),
    ("mmapd_db_size_bytes", "gauge"),
    ("mmapd_http_request_duration_seconds", "histogram"),
    ("mmapd_http_requests_total", "counter"),
    ("mmapd_kv_keys", "gauge"),
    ("mmapd_kv_revision", "gauge"),
    ("mmapd_log_batch_entries", "histogram"),
    ("mmapd_log_repaired_entries_total", "counter"),
    ("mmapd_log_size_bytes", "gauge"),
    ("mmapd_mmap_mapped_bytes", "gauge"),
    ("mmapd_mmap_msync_bytes_total", "counter"),
    ("mmapd_mmap_msync_duration_seconds", "histogram"),
    ("mmapd_mmap_msync_errors_total", "counter"),
    ("mmapd_mmap_msyncs_total", "counter"),
    ("mmapd_mmap_remaps_total", "counter"),
    ("mmapd_mmap_resident_bytes", "gauge"),
    ("mmapd_process_start_time_seconds", "gauge"),
    ("mmapd_raft_applied_batches_total", "counter"),
    ("mmapd_raft_applied_entries_total", "counter"),
    ("mmapd_raft_applied_index", "gauge"),
    ("mmapd_raft_commit_index", "gauge"),
    ("mmapd_raft_commit_latency_seconds", "histogram"),
    ("mmapd_raft_elections_started_total", "counter"),
    ("mmapd_raft_elections_won_total", "counter"),
    ("mmapd_raft_has_leader", "gauge"),
    ("mmapd_raft_leader_changes_total", "counter"),
    ("mmapd_raft_peer_lag_entries", "gauge"),
    ("mmapd_raft_peer_messages_dropped_total", "counter"),
    ("mmapd_raft_peer_messages_sent_total", "counter"),
    ("mmapd_raft_peer_round_trip_seconds", "histogram"),
    ("mmapd_raft_proposals_total", "counter"),
    ("mmapd_raft_role", "gauge"),
    ("mmapd_raft_snapshot_resumes_total", "counter"),
    ("mmapd_raft_snapshots_received_total", "counter"),
    ("mmapd_raft_snapshots_sent_total", "counter"),
    ("mmapd_raft_term", "gauge"),
    ("mmapd_scrub_bytes_total", "counter"),
    ("mmapd_scrub_findings_total", "counter"),
    ("mmapd_scrub_passes_total", "counter"),
    ("mmapd_watch_streams", "gauge"),
    ("mmapd_watch_events_total", "counter"),
    ("mmapd_watch_lagged_total", "counter"),
    ("mmapd_http_refused_connections_total", "counter"),
];

/// One that no other test counts in.
fn fresh() -> &'static Registry {
    Box::leak(Box::new(Registry::new()))
}

#[test]
fn every_promised_name_is_there_from_the_first_scrape_with_help_and_type() {
    let registry = fresh();
    let _ = registry.peer(2);
    let _ = registry.http_request("/first", "GET");
    let text = registry.handle.render();
    for (name, kind) in PROMISED {
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help\n{text}");
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name} is no {kind}");
        let series = |line: &str| line.starts_with(name);
        assert!(text.lines().any(series), "{name} has no series");
    }
    let declared: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    assert_eq!(declared.len(), PROMISED.len(), "not promised: {declared:#?}");
    assert!(text.contains("mmapd_mmap_msync_errors_total{file=\"log\"} 0\n"));
    assert!(text.contains("mmapd_raft_proposals_total{outcome=\"unknown\"} 0\n"));
    assert!(
        text.contains(
            "mmapd_http_requests_total{route=\"/first\",method=\"GET\",status=\"200\"} 0\n"
        )
    );
}

#[test]
fn every_alarm_is_a_series_that_comes_and_goes() {
    let registry = fresh();
    let raised = |text: &str| -> Vec<&str> {
        ALARMS
            .into_iter()
            .filter(|alarm| {
                let series = format!("mmapd_alarm{{alarm=\"{alarm}\"}} ");
                let number = text.lines().find_map(|line| line.strip_prefix(&series));
                number.expect("it is there from the first scrape") == "1"
            })
            .collect()
    };
    assert!(raised(&registry.handle.render()).is_empty());
    registry.metrics.alarms.set(&["disk-damage", "no-space"]);
    assert_eq!(raised(&registry.handle.render()), ["no-space", "disk-damage"]);
    registry.metrics.alarms.set(&["quota"]);
    assert_eq!(raised(&registry.handle.render()), ["quota"]);
}

#[test]
fn installing_twice_gives_the_same_numbers() {
    assert!(std::ptr::eq(install(), install()));
    install().peer(77).messages_sent.increment(1);
    install().peer(77).messages_sent.increment(1);
    upkeep();
    assert!(render().contains("mmapd_raft_peer_messages_sent_total{peer=\"77\"} 2\n"));
}

#[test]
fn requests_are_counted_by_status_and_odd_statuses_share_a_label() {
    let registry = fresh();
    let series = registry.http_request("/counted", "PUT");
    for status in [201, 201, 507, 299, 599] {
        series.record(status, 0.0002);
    }
    registry.handle.run_upkeep();
    let text = registry.handle.render();
    for (status, count) in [("200", 0), ("201", 2), ("507", 1), ("other", 2)] {
        let labels = format!("route=\"/counted\",method=\"PUT\",status=\"{status}\"");
        let line = format!("mmapd_http_requests_total{{{labels}}} {count}\n");
        assert!(text.contains(&line), "{line}{text}");
    }
    let bucket = "mmapd_http_request_duration_seconds_bucket{route=\"/counted\",method=\"PUT\",";
    assert!(text.contains(&format!("{bucket}le=\"0.0001\"}} 0\n")), "{text}");
    assert!(text.contains(&format!("{bucket}le=\"0.00025\"}} 5\n")), "{text}");
}

#[test]
fn syncs_and_maps_are_counted_by_file() {
    let registry = fresh();
    let file = &registry.metrics.db_file;
    file.mapped(1 << 20);
    file.mapped(4096);
    file.unmapped(4096);
    file.synced(8192, Duration::from_micros(150));
    let text = registry.handle.render();
    for line in [
        "mmapd_mmap_mapped_bytes{file=\"db\"} 1048576\n",
        "mmapd_mmap_msyncs_total{file=\"db\"} 1\n",
        "mmapd_mmap_msync_bytes_total{file=\"db\"} 8192\n",
        "mmapd_mmap_msync_duration_seconds_bucket{file=\"db\",le=\"0.0001\"} 0\n",
        "mmapd_mmap_msync_duration_seconds_bucket{file=\"db\",le=\"0.0002\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[test]
fn the_readme_lists_every_name() {
    let readme = include_str!("../../README.md");
    for (name, _) in PROMISED {
        assert!(readme.contains(&format!("`{name}`")), "README.md lacks {name}");
    }
}
