//! Workers over TLS: who is believed, what is shown, and files that change.

use std::path::Path;

use serde_json::Value;

use crate::{
    harness::{Gateway, Network, Process, eventually, never_for, s},
    serving_tls::{Pki, expiry, reload_failures},
};

/// A worker on node 2 with the certificate of a name.
fn worker(network: Network, pki: &Pki, name: &str, more: &[&str]) -> (Process, String) {
    let ip = network.ip(2).to_string();
    let (crt, key) = (pki.path(&format!("{name}.crt")), pki.path(&format!("{name}.key")));
    let args = ["sim-worker", "--host", &ip, "--port", "9000", "--model", "m"];
    let tls = ["--tls-cert-path", &crt, "--tls-key-path", &key];
    let process = Process::start("worker", args.into_iter().chain(tls).chain(more.iter().copied()), &[]);
    (process, format!("https://{ip}:9000"))
}

fn gateway(network: Network, n: u8, url: &str, more: &[&str], env: &[(&str, String)]) -> Gateway {
    let ip = network.ip(n).to_string();
    let args = ["--host", &ip, "--port", "8000", "--prometheus-host", &ip, "--prometheus-port", "29000"];
    let checks =
        ["--health-check-interval-secs", "1"].into_iter().filter(|_| !more.contains(&"--disable-health-check"));
    let args = args.into_iter().chain(["--worker-urls", url]).chain(checks).chain(more.iter().copied());
    let name = format!("gateway{n}");
    Gateway::attach(Process::start(&name, args, env), name, network.ip(n))
}

async fn is_ready(gateway: &Gateway) {
    eventually(s(15), &format!("{} is ready", gateway.name), async || gateway.is_ready().await).await;
}

/// Waits until the gateway has looked at its worker and found it wanting.
async fn is_refused(gateway: &Gateway, reason: &str) {
    let what = format!("{} refuses the worker: {reason}", gateway.name);
    eventually(s(15), &what, async || {
        let log = gateway.process.log();
        log.lines().any(|line| line.contains("worker probe failed") && line.contains(reason))
    })
    .await;
    never_for(s(1), "a worker that is not believed is used", async || gateway.is_ready().await).await;
}

async fn chat(gateway: &Gateway, is_stream: bool) -> (u16, String) {
    let body = serde_json::json!({"model": "m", "stream": is_stream, "messages": [{"role": "user", "content": "hi"}]});
    let answer = gateway.http.post(gateway.url("/v1/chat/completions")).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn an_https_worker_is_used_where_its_authority_is_trusted() {
    let (network, pki) = (Network::new(), Pki::new());
    pki.issue("worker", network.ip(2), 5);
    let (_worker, url) = worker(network, &pki, "worker", &[]);
    let debug = [("RUST_LOG", "info,smg::gateway=debug".to_owned())];
    let ca = pki.path("ca.crt");
    let by_flag = gateway(network, 1, &url, &["--worker-ca-path", &ca], &[]);
    let by_machine = gateway(network, 3, &url, &[], &[("SSL_CERT_FILE", ca.clone())]);
    let by_nobody = gateway(network, 4, &url, &[], &debug);
    for gateway in [&by_flag, &by_machine] {
        is_ready(gateway).await;
        for is_stream in [false, true, false] {
            let (status, text) = chat(gateway, is_stream).await;
            assert_eq!(status, 200, "{text}");
            assert_eq!(is_stream, text.ends_with("data: [DONE]\n\n"), "{text}");
        }
    }
    let flushed = by_flag.http.post(by_flag.url("/flush_cache")).send().await.unwrap();
    assert_eq!(flushed.status(), 200, "control routes reach it too");
    is_refused(&by_nobody, "UnknownIssuer").await;
    let (status, text) = chat(&by_nobody, false).await;
    assert!(status == 503 && !text.contains(&network.ip(2).to_string()), "{status} {text}");
}

#[tokio::test]
async fn a_worker_must_have_the_name_by_which_it_is_called() {
    let (network, pki) = (Network::new(), Pki::new());
    pki.issue("worker", network.ip(9), 5);
    let (_worker, url) = worker(network, &pki, "worker", &[]);
    let ca = pki.path("ca.crt");
    let debug = [("RUST_LOG", "info,smg::gateway=debug".to_owned())];
    is_refused(&gateway(network, 1, &url, &["--worker-ca-path", &ca], &debug), "not valid for name").await;

    let trusting = ["--worker-ca-path", &ca, "--disable-health-check", "--disable-retries"];
    let trusting = gateway(network, 3, &url, &trusting, &[]);
    is_ready(&trusting).await;
    let (status, text) = chat(&trusting, false).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, error["error"]["code"].as_str()), (502, Some("worker_unreachable")), "{text}");
    assert!(!text.contains(&network.ip(2).to_string()), "no URL leaks: {text}");
}

#[tokio::test]
async fn a_worker_that_wants_a_certificate_gets_one() {
    let (network, pki) = (Network::new(), Pki::new());
    for name in ["worker", "client"] {
        pki.issue(name, network.ip(2), 5);
    }
    let ca = pki.path("ca.crt");
    let (_worker, url) = worker(network, &pki, "worker", &["--tls-client-ca-path", &ca]);
    let (crt, key) = (pki.path("client.crt"), pki.path("client.key"));
    let shown = ["--worker-ca-path", &ca, "--worker-client-cert-path", &crt, "--worker-client-key-path", &key];
    let known = gateway(network, 1, &url, &shown, &[]);
    let debug = [("RUST_LOG", "info,smg::gateway=debug".to_owned())];
    let anonymous = gateway(network, 3, &url, &["--worker-ca-path", &ca], &debug);
    is_ready(&known).await;
    assert_eq!(chat(&known, false).await.0, 200);
    let until = expiry(&known.metrics().await, "worker");
    assert!(until > 0);
    is_refused(&anonymous, "CertificateRequired").await;

    std::fs::copy(Path::new(&pki.path("worker.key")), &key).unwrap();
    eventually(s(20), "a pair that is none is counted", async || reload_failures(&known.metrics().await, "worker") > 0)
        .await;
    assert_eq!(chat(&known, false).await.0, 200, "the old one stays in use");
    pki.issue("client", network.ip(2), 9);
    eventually(s(20), "the new one is in use", async || expiry(&known.metrics().await, "worker") > until).await;
    assert_eq!(chat(&known, false).await.0, 200);
}

#[tokio::test]
async fn an_authority_comes_and_goes_while_workers_are_used() {
    let (network, old, new) = (Network::new(), Pki::new(), Pki::new());
    new.issue("worker", network.ip(2), 5);
    let (_worker, url) = worker(network, &new, "worker", &[]);
    let ca = old.path("ca.crt");
    let debug = [("RUST_LOG", "info,smg::gateway=debug".to_owned())];
    let gateway = gateway(network, 1, &url, &["--worker-ca-path", &ca], &debug);
    // Both authorities have one name, so it is the signature that tells them apart.
    is_refused(&gateway, "BadSignature").await;
    let bundles = [&old, &new].map(|pki| std::fs::read_to_string(pki.path("ca.crt")).unwrap());
    std::fs::write(&ca, bundles.concat()).unwrap();
    is_ready(&gateway).await;
    assert_eq!(chat(&gateway, false).await.0, 200);
    std::fs::write(&ca, &bundles[0]).unwrap();
    eventually(s(20), "its authority has gone", async || !gateway.is_ready().await).await;
}
