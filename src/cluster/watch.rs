//! `smg cluster watch`: `/ha/events` as lines, with connections made anew.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::bail;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{
    BaseUrl, WatchArgs,
    client::{ANSWER_BYTES_MAX, Client, Open},
    exit, plain, say,
};
use crate::ha::events::KEEP_ALIVE;

/// A stream that is silent for so long is given up: two comment lines are missing.
const SILENCE_MAX: Duration = Duration::from_secs(2 * KEEP_ALIVE.as_secs() + 5);

/// First wait before connecting again; it doubles up to [`WAIT_MAX`].
const WAIT_FIRST: Duration = Duration::from_millis(250);

/// Longest wait before connecting again.
const WAIT_MAX: Duration = Duration::from_secs(5);

pub(super) async fn run(client: &Client, args: &WatchArgs, ended: CancellationToken) -> anyhow::Result<ExitCode> {
    tokio::select! {
        outcome = follow(client, args) => outcome,
        () = ended.cancelled() => Ok(exit(true)),
    }
}

/// Goes on until no gateway can be reached any more.
async fn follow(client: &Client, args: &WatchArgs) -> anyhow::Result<ExitCode> {
    let (mut failures, mut wait) = (0, WAIT_FIRST);
    loop {
        for url in &args.ask.url {
            let failure = match client.follow(url, "/ha/events").await {
                Ok(stream) => {
                    (failures, wait) = (0, WAIT_FIRST);
                    relay(stream, url, args.json).await?
                }
                Err(error) => format!("{error:#}"),
            };
            note(args.json, url, &failure)?;
        }
        if failures >= args.max_reconnects {
            return Ok(exit(false));
        }
        failures += 1;
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(WAIT_MAX);
    }
}

fn note(as_json: bool, url: &BaseUrl, what: &str) -> anyhow::Result<()> {
    if as_json {
        return say(&format!("{}\n", json!({ "event": "lost", "data": { "url": url.to_string(), "reason": what } })));
    }
    say(&format!("{} lost    {url}: {}\n", now(), plain(what)))
}

/// Prints the events of one stream; gives why it ended.
async fn relay(stream: Open, url: &BaseUrl, as_json: bool) -> anyhow::Result<String> {
    if !as_json {
        say(&format!("{} following {url}\n", now()))?;
    }
    let (mut body, mut parser) = (stream.body, Parser::default());
    loop {
        let frame = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Err(_) => return Ok(format!("nothing for {} s", SILENCE_MAX.as_secs())),
            Ok(None) => return Ok("the gateway ended the stream".to_owned()),
            Ok(Some(Err(error))) => return Ok(error.to_string()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(bytes) = frame.into_data() else { continue };
        for (event, data) in parser.take(&bytes)? {
            match as_json {
                true => say(&format!("{}\n", json!({ "event": event, "data": data })))?,
                false => say(&format!("{} {}\n", now(), line(&event, &data)))?,
            }
        }
    }
}

/// Server-sent events as they come in (HTML Living Standard §9.2.6); the gateway ends lines with `\n`.
#[derive(Default)]
struct Parser {
    rest: Vec<u8>,
    event: String,
    data: String,
}

impl Parser {
    /// The events that these bytes complete.
    fn take(&mut self, bytes: &[u8]) -> anyhow::Result<Vec<(String, Value)>> {
        let mut found = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if piece.last() != Some(&b'\n') {
                break;
            }
            let line = std::mem::take(&mut self.rest);
            let line = String::from_utf8_lossy(&line[..line.len() - 1]);
            match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
                Some(("event", value)) => value.clone_into(&mut self.event),
                Some(("data", value)) => self.data.push_str(value),
                None if line.is_empty() && !self.data.is_empty() => {
                    let data = serde_json::from_str(&self.data).unwrap_or(Value::Null);
                    self.data.clear();
                    found.push((std::mem::take(&mut self.event), data));
                }
                _ => {}
            }
        }
        if self.rest.len() + self.data.len() > ANSWER_BYTES_MAX {
            bail!("an event of more than {ANSWER_BYTES_MAX} bytes: is this an smg gateway?");
        }
        Ok(found)
    }
}

/// One event for people.
fn line(event: &str, data: &Value) -> String {
    let text = |key: &str| data[key].as_str().map_or_else(|| "none".to_owned(), plain);
    match event {
        "status" => {
            let nodes = data["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
            let alive = nodes.iter().filter(|node| node["status"] == "ALIVE").count();
            let quorum = if data["quorum"] == true { "yes" } else { "NO" };
            let (leader, term) = (text("leader"), &data["term"]);
            format!("status  {alive} of {} nodes ALIVE, leader {leader}, term {term}, quorum {quorum}", nodes.len())
        }
        "node" => {
            let status = data["status"].as_str().map_or_else(|| "forgotten".to_owned(), plain);
            let was = data["previous"].as_str().map_or_else(|| "new".to_owned(), plain);
            format!("node    {} {was} -> {status} ({})", text("name"), text("address"))
        }
        "leader" => format!("leader  {} in term {}", text("leader"), data["term"]),
        "worker" => {
            let observers = data["observers"].as_object();
            let seen = observers.into_iter().flatten();
            let seen: Vec<_> = seen
                .map(|(node, state)| format!("{}: {}", plain(node), plain(state.as_str().unwrap_or("?"))))
                .collect();
            format!("worker  {} {} {} ({})", text("id"), text("change"), text("url"), seen.join(", "))
        }
        "sight" => {
            let doubted = data["sees"]["not_alive"].as_object().into_iter().flatten();
            let doubted =
                doubted.map(|(name, state)| format!(", {} {}", plain(name), plain(state.as_str().unwrap_or("?"))));
            match data["sees"]["alive"].as_u64() {
                Some(alive) => format!("sight   {} sees {alive} ALIVE{}", text("name"), doubted.collect::<String>()),
                None => format!("sight   {} is not heard", text("name")),
            }
        }
        "policy" => format!("policy  {} of model {}", text("policy"), text("model")),
        other => format!("{:<7} {}", plain(other), plain(&data.to_string())),
    }
}

/// This machine's time, UTC.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now().max(SystemTime::UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let text =
            "event: status\ndata: {\"term\":1}\n\n:\n\nevent: leader\ndata: {\"leader\":\"n\u{fc}\",\"term\":2}\n\n";
        let expected = vec![
            ("status".to_owned(), json!({"term": 1})),
            ("leader".to_owned(), json!({"leader": "n\u{fc}", "term": 2})),
        ];
        for size in [1, 2, 7, text.len()] {
            let mut parser = Parser::default();
            let found: Vec<_> = text.as_bytes().chunks(size).flat_map(|bytes| parser.take(bytes).unwrap()).collect();
            assert_eq!(found, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_event_without_end_is_given_up() {
        let (mut parser, piece) = (Parser::default(), vec![b'x'; 1 << 20]);
        let full = (0..=ANSWER_BYTES_MAX >> 20).map(|_| parser.take(&piece)).find_map(Result::err);
        assert!(full.unwrap().to_string().contains("is this an smg gateway?"));
    }

    #[test]
    fn each_event_is_a_line() {
        for (event, data, expected) in [
            (
                "status",
                json!({"nodes": [{"status": "ALIVE"}, {"status": "DOWN"}], "leader": null, "term": 3, "quorum": false}),
                "status  1 of 2 nodes ALIVE, leader none, term 3, quorum NO",
            ),
            (
                "node",
                json!({"name": "n2", "status": "DOWN", "previous": "SUSPECTED", "address": "h:1"}),
                "node    n2 SUSPECTED -> DOWN (h:1)",
            ),
            (
                "node",
                json!({"name": "n2", "status": null, "previous": null, "address": "h:1"}),
                "node    n2 new -> forgotten (h:1)",
            ),
            (
                "sight",
                json!({"name": "n2", "sees": {"alive": 2, "not_alive": {"n3": "DOWN"}}}),
                "sight   n2 sees 2 ALIVE, n3 DOWN",
            ),
            ("sight", json!({"name": "n2", "sees": null}), "sight   n2 is not heard"),
            ("leader", json!({"leader": "n1", "term": 4}), "leader  n1 in term 4"),
            (
                "worker",
                json!({"id": "w-1", "url": "http://w", "change": "changed", "observers": {"n1": "ready"}}),
                "worker  w-1 changed http://w (n1: ready)",
            ),
            ("policy", json!({"model": "m", "policy": "random"}), "policy  random of model m"),
            ("later\u{7}", json!({"x": "\u{1b}"}), "later\u{fffd}  {\"x\":\"\\u001b\"}"),
        ] {
            assert_eq!(line(event, &data), expected, "{event}");
        }
    }
}
