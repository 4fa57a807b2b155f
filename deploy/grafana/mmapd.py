#!/usr/bin/env python3
"""Writes mmapd.json, the dashboard for Grafana: deploy/grafana/mmapd.py >deploy/grafana/mmapd.json

A panel is one line here, and several dozen in JSON. .ci/deploy.py checks that the file is what
this script prints, that every metric of mmapd is on it, and that every query works.
"""

import json

# What every query selects by.
ALL = 'job="mmapd", cluster="$cluster", instance=~"$instance"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24


def metric(name, labels=""):
    """A metric of the chosen nodes."""
    return f"{name}{{{ALL}{', ' + labels if labels else ''}}}"


def rate(name, by, labels=""):
    return f"sum by ({by}) (rate({metric(name, labels)}[$__rate_interval]))"


def per_hour(name, by, labels=""):
    return f"sum by ({by}) (increase({metric(name, labels)}[1h]))"


def quantile(share, name, by, labels=""):
    return f"histogram_quantile({share}, {rate(name + '_bucket', by + ', le', labels)})"


def panel(kind, title, unit, help, *queries, width=8, height=8, **more):
    """`queries` are pairs of an expression and a legend."""
    defaults = {"unit": unit, "min": 0, **more.pop("defaults", {})}
    if kind == "timeseries":
        defaults["custom"] = {"lineWidth": 1, "fillOpacity": 5, "showPoints": "never", "spanNulls": False}
    targets = [
        {"refId": chr(ord("A") + at), "datasource": SOURCE, "expr": expr, "legendFormat": legend,
         "instant": kind == "stat"}
        for at, (expr, legend) in enumerate(queries)
    ]
    options = {
        "timeseries": {"legend": {"displayMode": "list", "placement": "bottom"},
                       "tooltip": {"mode": "multi", "sort": "desc"}},
        "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none",
                 "textMode": "auto"},
        "state-timeline": {"mergeValues": True, "showValue": "auto"},
    }[kind]
    return {"type": kind, "title": title, "description": help, "datasource": SOURCE, "targets": targets,
            "fieldConfig": {"defaults": defaults, "overrides": []}, "options": {**options, **more},
            "gridPos": {"w": width, "h": height}}


def stat(title, unit, help, *queries, **more):
    return panel("stat", title, unit, help, *queries, width=4, height=4, **more)


def graph(title, unit, help, *queries, **more):
    return panel("timeseries", title, unit, help, *queries, **more)


ROLES = [{"type": "value", "options": {
    "0": {"text": "follower", "color": "blue", "index": 0},
    "1": {"text": "candidate", "color": "orange", "index": 1},
    "2": {"text": "leader", "color": "green", "index": 2},
    "3": {"text": "learner", "color": "purple", "index": 3},
}}]
# Asked by probes and by other nodes, not by clients.
CLIENTS = 'route!~"/readyz|/livez|/metrics|/v1/raft/.*"'
NODE = "instance"
FILE = "instance, file"
PAIR = "instance, peer"

ROWS = {
    "Now": [
        stat("Nodes that answer", "none", "As Prometheus sees them.", (f"sum(up{{{ALL}}})", "")),
        stat("Leader", "none", "Who leads, as the nodes themselves say.",
             (metric("mmapd_raft_role") + " == 2", "{{instance}}"), textMode="name"),
        stat("Know a leader", "none", "Nodes that can serve.", (f"sum({metric('mmapd_raft_has_leader')})", "")),
        stat("Keys", "short", "On the node that is furthest.", (f"max({metric('mmapd_kv_keys')})", "")),
        stat("Watches", "short", "Open now, on all nodes.", (f"sum({metric('mmapd_watch_streams')})", "")),
        stat("Version", "none", "What runs.",
             (f"count by (version, commit) ({metric('mmapd_build_info')})", "{{version}} {{commit}}"),
             textMode="name"),
    ],
    "Requests": [
        graph("Requests", "reqps", "Of clients, by route.",
              (rate("mmapd_http_requests_total", "method, route", CLIENTS), "{{method}} {{route}}")),
        graph("Requests that fail", "reqps", "429 overloaded, 503 not ready, 504 too slow, 507 no room.",
              (rate("mmapd_http_requests_total", "status", CLIENTS + ', status=~"429|5.."'), "{{status}}")),
        graph("Connections refused", "none", "In the last hour; see limits.connections and connections_per_address.",
              (per_hour("mmapd_http_refused_connections_total", NODE), "{{instance}}")),
        graph("Time to answer", "s", "99 of 100 requests are faster; by route.",
              (quantile(0.99, "mmapd_http_request_duration_seconds", "method, route", CLIENTS),
               "{{method}} {{route}}")),
        graph("Writes", "ops", "What clients of each node were told.",
              (rate("mmapd_raft_proposals_total", "outcome"), "{{outcome}}")),
        graph("Time to commit", "s", "From proposal to commit, on the leader.",
              (quantile(0.5, "mmapd_raft_commit_latency_seconds", NODE), "half, {{instance}}"),
              (quantile(0.99, "mmapd_raft_commit_latency_seconds", NODE), "99 of 100, {{instance}}")),
        graph("Messages between nodes", "reqps", "By route, on the node that answers.",
              (rate("mmapd_http_requests_total", "route", 'route=~"/v1/raft/.*"'), "{{route}}")),
    ],
    "Raft": [
        panel("state-timeline", "Role", "none", "Who was what.",
              (metric("mmapd_raft_role"), "{{instance}}"), width=16, defaults={"mappings": ROLES}),
        graph("Term", "none", "Goes up with every election.", (metric("mmapd_raft_term"), "{{instance}}")),
        graph("Elections and leaders", "none", "In the last hour.",
              (per_hour("mmapd_raft_elections_started_total", NODE), "begun by {{instance}}"),
              (per_hour("mmapd_raft_elections_won_total", NODE), "won by {{instance}}"),
              (per_hour("mmapd_raft_leader_changes_total", NODE), "changes seen by {{instance}}")),
        graph("Entries a follower lacks", "short", "As the leader sees it.",
              (f"max by (peer) ({metric('mmapd_raft_peer_lag_entries')})", "node {{peer}}")),
        graph("Entries to apply", "short", "Committed and not yet in the database.",
              (f"{metric('mmapd_raft_commit_index')} - {metric('mmapd_raft_applied_index')}", "{{instance}}")),
        graph("Round trip to a peer", "s", "99 of 100 messages are faster.",
              (quantile(0.99, "mmapd_raft_peer_round_trip_seconds", PAIR), "{{instance}} to {{peer}}")),
        graph("Messages to a peer", "pps", "Handed to the connection, and dropped.",
              (rate("mmapd_raft_peer_messages_sent_total", PAIR), "{{instance}} to {{peer}}"),
              (rate("mmapd_raft_peer_messages_dropped_total", PAIR), "dropped, {{instance}} to {{peer}}")),
        graph("Entries applied", "ops", "And the batches they came in.",
              (rate("mmapd_raft_applied_entries_total", NODE), "entries, {{instance}}"),
              (rate("mmapd_raft_applied_batches_total", NODE), "batches, {{instance}}")),
        graph("Snapshots", "none", "In the last hour.",
              (per_hour("mmapd_raft_snapshots_sent_total", NODE), "sent by {{instance}}"),
              (per_hour("mmapd_raft_snapshots_received_total", NODE), "received by {{instance}}"),
              (per_hour("mmapd_raft_snapshot_resumes_total", NODE), "resumed by {{instance}}")),
        graph("Revision", "none", "Of the newest change.", (metric("mmapd_kv_revision"), "{{instance}}")),
    ],
    "Disk": [
        graph("Time to sync", "s", "99 of 100 syncs are faster. Every write waits for one of the log.",
              (quantile(0.99, "mmapd_mmap_msync_duration_seconds", FILE), "{{file}}, {{instance}}")),
        graph("Syncs", "ops", "And those that failed, the first of which ends the process.",
              (rate("mmapd_mmap_msyncs_total", FILE), "{{file}}, {{instance}}"),
              (rate("mmapd_mmap_msync_errors_total", FILE), "failed: {{file}}, {{instance}}")),
        graph("Bytes synced", "Bps", "In the ranges that were synced.",
              (rate("mmapd_mmap_msync_bytes_total", FILE), "{{file}}, {{instance}}")),
        graph("Entries in a sync", "none", "Of the log: more entries share one when many write.",
              (quantile(0.5, "mmapd_log_batch_entries", NODE), "half, {{instance}}"),
              (quantile(0.95, "mmapd_log_batch_entries", NODE), "95 of 100, {{instance}}")),
        graph("Database", "bytes", "The file, and what of it holds live data.",
              (metric("mmapd_db_size_bytes"), "file, {{instance}}"),
              (metric("mmapd_db_live_bytes"), "live, {{instance}}")),
        graph("Log", "bytes", "All its files.", (metric("mmapd_log_size_bytes"), "{{instance}}")),
        graph("Time of a checkpoint", "s", "The slowest in ten minutes, nearly.",
              (f"histogram_quantile(0.99, sum by (instance, le) (increase("
               f"{metric('mmapd_db_checkpoint_duration_seconds_bucket')}[10m])))", "{{instance}}")),
        graph("Compactions", "none", "In the last hour.",
              (per_hour("mmapd_db_compactions_total", "instance, outcome"), "{{outcome}}, {{instance}}")),
        graph("Time of a compaction", "s", "The mean of the last hour.",
              (f"{per_hour('mmapd_db_compaction_duration_seconds_sum', NODE)} / "
               f"({per_hour('mmapd_db_compaction_duration_seconds_count', NODE)} > 0)", "{{instance}}")),
        graph("Maps in memory", "bytes", "What of the files the kernel has in memory.",
              (metric("mmapd_mmap_resident_bytes"), "{{file}}, {{instance}}")),
        graph("Address space", "bytes", "Reserved by maps; most of it has no memory behind it.",
              (metric("mmapd_mmap_mapped_bytes"), "{{file}}, {{instance}}")),
        graph("Maps made again", "none", "In the last hour, because a file outgrew its map.",
              (per_hour("mmapd_mmap_remaps_total", FILE), "{{file}}, {{instance}}")),
    ],
    "Damage": [
        graph("Damage", "none", "In the last hour. Anything but 0 wants somebody to look.",
              (per_hour("mmapd_scrub_findings_total", FILE), "found: {{file}}, {{instance}}"),
              (per_hour("mmapd_log_repaired_entries_total", NODE), "entries repaired, {{instance}}"),
              (per_hour("mmapd_db_lost_total", NODE), "databases lost, {{instance}}"),
              (per_hour("mmapd_db_digest_mismatches_total", NODE), "states that differ, {{instance}}")),
        graph("Read to look for damage", "Bps", "See storage.scrub_rate.",
              (rate("mmapd_scrub_bytes_total", FILE), "{{file}}, {{instance}}")),
        graph("Times all was read", "none", "In a day; see storage.scrub_interval.",
              (f"increase({metric('mmapd_scrub_passes_total')}[1d])", "{{instance}}")),
        graph("Alarms", "none", "Nodes that raise it, as alarms of /v1/status says.",
              (f"sum by (alarm) ({metric('mmapd_alarm')})", "{{alarm}}")),
    ],
    "Watches": [
        graph("Open watches", "none", "limits.watches is the most.", (metric("mmapd_watch_streams"), "{{instance}}")),
        graph("Changes told", "ops", "To all watches.", (rate("mmapd_watch_events_total", NODE), "{{instance}}")),
        graph("Watches that were too slow", "none", "Ended in the last hour.",
              (per_hour("mmapd_watch_lagged_total", NODE), "{{instance}}")),
    ],
    "Settings": [
        graph("Settings read again", "none", "In the last hour, on SIGHUP. What failed was not taken over.",
              (per_hour("mmapd_config_reloads_total", "instance, outcome"), "{{outcome}}, {{instance}}")),
        graph("Age of the process", "s", "Since it was started. Who starts again and again stays young.",
              (f"time() - {metric('mmapd_process_start_time_seconds')}", "{{instance}}")),
    ],
}


def layout(rows):
    """Panels from left to right, in rows as high as their panels."""
    y, number = 0, 1
    for title, panels in rows.items():
        yield {"type": "row", "title": title, "id": number, "collapsed": False, "panels": [],
               "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}}
        y, x, number = y + 1, 0, number + 1
        for one in panels:
            place = one["gridPos"]
            if x + place["w"] > WIDTH:
                x, y = 0, y + place["h"]
            yield {"id": number, **one, "gridPos": {"x": x, "y": y, **place}}
            x, number = x + place["w"], number + 1
        y += panels[-1]["gridPos"]["h"]


def variable(name, label, query, several):
    more = {"includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}} if several else {}
    return {"type": "query", "name": name, "label": label, "datasource": SOURCE, "query": query,
            "definition": query, "refresh": 2, "sort": 1, "multi": several, "includeAll": False, **more}


print(json.dumps({
    "uid": "mmapd",
    "title": "mmapd",
    "description": "A cluster of mmapd. Made by deploy/grafana/mmapd.py.",
    "tags": ["mmapd"],
    "schemaVersion": 39,
    "editable": True,
    "graphTooltip": 1,
    "refresh": "10s",
    "time": {"from": "now-1h", "to": "now"},
    "timezone": "browser",
    "templating": {"list": [
        {"type": "datasource", "name": "datasource", "label": "Source", "query": "prometheus"},
        variable("cluster", "Cluster", 'label_values(mmapd_build_info{job="mmapd"}, cluster)', False),
        variable("instance", "Node", 'label_values(mmapd_build_info{job="mmapd", cluster="$cluster"}, instance)', True),
    ]},
    "annotations": {"list": [
        {"name": "Alerts", "datasource": SOURCE, "enable": True, "iconColor": "red",
         "expr": 'ALERTS{alertstate="firing", alertname=~"Mmapd.*", cluster="$cluster"}',
         "titleFormat": "{{alertname}}", "textFormat": "{{instance}}"},
    ]},
    "panels": list(layout(ROWS)),
}, indent=1))
