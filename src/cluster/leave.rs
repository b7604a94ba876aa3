//! `smg cluster leave`: one node leaves, and the wait until it has.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use http::Method;
use serde_json::{Value, json};

use super::{LeaveArgs, client::Client, exit, plain, say};

/// Between two looks at the node.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Failed looks in a row that mean that the node is gone: one may be a lost packet.
const FAILED_LOOKS: u32 = 3;

pub(super) async fn run(client: &Client, args: &LeaveArgs) -> anyhow::Result<ExitCode> {
    let key = args.admin_api_key.as_deref().map(read_key).transpose()?;
    let url = &args.url;
    let answer = client.send(Method::POST, url, "/ha/shutdown", key.as_deref()).await;
    let (status, body) = answer.with_context(|| format!("ask {url}/ha/shutdown"))?;
    let node = match status {
        202 => plain(body["node_name"].as_str().unwrap_or("the node")),
        401 => bail!("{url} wants its admin key: give --admin-api-key KEY or @FILE"),
        403 => bail!("{url} lets no key of yours shut it down: ask from its own host, or set --admin-api-key there"),
        status => {
            let error = body["error"]["message"].as_str().or(body["error"].as_str()).unwrap_or("no reason given");
            bail!("{url} answered {status}: {}", plain(error))
        }
    };
    let started = Instant::now();
    let state = wait(client, args, started).await;
    let elapsed = started.elapsed().as_secs_f64();
    if args.json {
        say(&format!("{:#}\n", json!({ "node": node, "state": state.as_str(), "seconds": elapsed })))?;
    } else {
        say(&format!("node {node} {} after {elapsed:.1} s\n", state.text()))?;
    }
    Ok(exit(state == State::Gone || state == State::Leaving && args.wait_secs == 0))
}

/// The key itself, or the first line of the file that `@path` names.
fn read_key(text: &str) -> anyhow::Result<String> {
    let key = match text.strip_prefix('@') {
        None => text.to_owned(),
        Some(path) => {
            let lines = std::fs::read_to_string(path).with_context(|| format!("--admin-api-key: read {path}"))?;
            lines.lines().next().unwrap_or_default().trim().to_owned()
        }
    };
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("--admin-api-key: a key has visible ASCII characters alone, at least one");
    }
    Ok(key)
}

/// What a look at the node showed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It answers as before.
    Staying,
    /// It drains.
    Leaving,
    /// It answers no more.
    Gone,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Staying => "staying",
            Self::Leaving => "leaving",
            Self::Gone => "gone",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Staying => "has not begun to leave",
            Self::Leaving => "is LEAVING, requests still run,",
            Self::Gone => "has left, it takes no more requests,",
        }
    }
}

async fn wait(client: &Client, args: &LeaveArgs, started: Instant) -> State {
    // Leaving begins at once: with nothing to wait for it is still looked for so long.
    let limit = Duration::from_secs(args.wait_secs.max(5));
    let (mut state, mut failed) = (State::Staying, 0);
    while started.elapsed() < limit {
        match client.send(Method::GET, &args.url, "/ha/health", None).await {
            // A drained listener is closed before the process ends; whoever answers otherwise has taken its place.
            Err(_) => failed += 1,
            Ok((_, body)) => {
                failed = 0;
                state = of_health(&body);
            }
        }
        if failed >= FAILED_LOOKS {
            return State::Gone;
        }
        if state == State::Leaving && args.wait_secs == 0 {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    state
}

fn of_health(body: &Value) -> State {
    if body["node_status"] == "LEAVING" { State::Leaving } else { State::Staying }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn keys_come_from_the_flag_or_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret-1\nsecret-2\n").unwrap();
        let named = format!("@{}", file.path().display());
        for (case, text, expected) in [
            ("plain", "secret", Ok("secret")),
            ("the first of a file", named.as_str(), Ok("secret-1")),
            ("empty", "", Err("at least one")),
            ("blanks", "a b", Err("visible ASCII")),
            ("no file", "@/no/such/file", Err("read /no/such/file")),
        ] {
            match (read_key(text), expected) {
                (Ok(key), Ok(expected)) => assert_eq!(key, expected, "{case}"),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{case}: {error}"),
                (found, _) => panic!("{case}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_look_tells_staying_from_leaving() {
        for (case, body, expected) in [
            ("alive", json!({"node_status": "ALIVE"}), State::Staying),
            ("leaving", json!({"node_status": "LEAVING"}), State::Leaving),
            ("an answer without JSON", Value::Null, State::Staying),
        ] {
            assert_eq!(of_health(&body), expected, "{case}");
        }
    }
}
