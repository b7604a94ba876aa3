//! Bad input: a clear error, the process alive where it runs.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Gateway, Network, Process, SMG, eventually, s, worker};

/// Exit code and stderr of a start that must fail at once.
fn refusal(args: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(SMG).args(args).envs(env.iter().copied()).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn flags_are_refused_by_name_before_anything_binds() {
    for (case, args, env, named) in [
        ("unknown flag", &["--no-such-flag"][..], &[][..], "--no-such-flag"),
        ("flag of a later feature", &["--mesh-tls"], &[], "--mesh-tls"),
        ("bad worker URL", &["--worker-urls", "not a url at all://"], &[], "--worker-urls"),
        ("bad port", &["--port", "70000"], &[], "--port"),
        ("bad policy", &["--policy", "fastest"], &[], "--policy"),
        ("bad variable", &[], &[("SMG_PORT", "many")], "SMG_PORT"),
        ("bad peer", &["--enable-mesh", "--mesh-peer-urls", "a b:c:d"], &[], "--mesh-peer-urls"),
        ("out of range", &["--retry-jitter-factor", "2"], &[], "--retry-jitter-factor"),
        ("missing file", &["--config", "/nonexistent/smg.toml"], &[], "--config"),
        ("bad name", &["--enable-mesh", "--mesh-server-name", "a/b"], &[], "--mesh-server-name"),
    ] {
        let (code, message) = refusal(args, env);
        assert_eq!(code, Some(2), "{case}: {message}");
        assert!(message.contains(named), "{case}: {message}");
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let network = Network::new();
    let ip = network.ip(1).to_string();
    let held = std::net::TcpListener::bind((ip.as_str(), 8000)).unwrap();
    let metrics = ["--prometheus-host", &ip, "--prometheus-port", "0"];
    for (case, args, named) in [
        ("public port", vec!["--host", &ip, "--port", "8000"], "--port"),
        (
            "mesh port",
            vec!["--host", &ip, "--port", "0", "--enable-mesh", "--mesh-host", &ip, "--mesh-port", "8000"],
            "--mesh-port",
        ),
        (
            "metrics port",
            vec!["--host", &ip, "--port", "0", "--prometheus-host", &ip, "--prometheus-port", "8000"],
            "--prometheus-port",
        ),
    ] {
        let more = if case == "metrics port" { &[][..] } else { &metrics[..] };
        let mut process = Process::start(case, args.into_iter().chain(more.iter().copied()), &[]);
        let status = process.exit(s(5)).await;
        assert_eq!(status.code(), Some(1), "{case}: {}", process.log());
        assert!(process.log().contains(named), "{case}: {}", process.log());
    }
    drop(held);
}

#[tokio::test]
async fn bad_requests_get_openai_errors_and_the_process_lives() {
    let network = Network::new();
    let (_worker, url) = worker(network, 100, "m1", &[]);
    // One worker lives, one is down, one peer does not resolve: none of that stops the rest.
    let urls = format!("{url},http://{}:1", network.ip(101));
    let more = ["--worker-urls", &urls, "--mesh-peer-urls", "no-such-host.invalid:39527"];
    let mut gateway = Gateway::start(network, 1, &[], &more);
    eventually(s(5), "ready", async || gateway.is_ready().await).await;
    // For 10 s the worker that is down might yet serve any model.
    eventually(s(11), "unknown models are told", async || matches!(gateway.chat("m2").await, Ok((404, _)))).await;
    let chat = gateway.url("/v1/chat/completions");
    let post =
        |body: &str, kind: &str| gateway.http.post(&chat).header("content-type", kind).body(body.to_owned()).send();
    for (case, body, kind, status, code) in [
        ("invalid JSON", "{\"model\": ", "application/json", 400, "invalid_json"),
        ("not JSON", "model=m1", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        ("unknown model", "{\"model\":\"m2\",\"messages\":[]}", "application/json", 404, "model_not_found"),
    ] {
        let answer = post(body, kind).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{case}");
        let header = answer.headers()["x-smg-error-code"].to_str().unwrap().to_owned();
        let error: Value = answer.json().await.unwrap();
        assert_eq!(error["error"]["code"], header.as_str(), "{case}: {error}");
        assert_eq!(error["error"]["code"], code, "{case}: {error}");
        assert!(error["error"]["message"].is_string() && error["error"]["param"].is_null(), "{case}: {error}");
        assert!(!error.to_string().contains(":9000"), "{case}: a worker URL leaks: {error}");
    }
    for (case, body) in [
        ("no url", json!({})),
        ("bad url", json!({"url": "nope"})),
        ("unknown field", json!({"url": "http://127.0.0.1:1", "colour": "red"})),
    ] {
        let (status, answer) = gateway.post("/workers", body).await;
        assert_eq!(status, 400, "{case}: {answer}");
    }
    assert_eq!(gateway.get("/no/such/route").await.unwrap().0, 404);
    assert!(matches!(gateway.chat("m1").await, Ok((200, _))));
    assert!(gateway.process.is_running());
}

#[tokio::test]
async fn without_a_ready_worker_traffic_waits_politely() {
    let network = Network::new();
    let gateway = Gateway::start(network, 1, &[], &[]);
    eventually(s(5), "it answers", async || gateway.get("/liveness").await.is_some()).await;
    let (status, body) = gateway.get("/readiness").await.unwrap();
    assert_eq!((status, &body["status"]), (503, &json!("not ready")));
    let body = json!({"model": "m1", "messages": []});
    let answer = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let error: Value = answer.json().await.unwrap();
    assert_eq!(error["error"]["code"], "no_available_workers");
}
