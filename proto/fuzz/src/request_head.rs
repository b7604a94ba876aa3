//! Heads of client requests: where the reads of a socket end changes nothing, and what passes to a worker is clean.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use rand::SeedableRng as _;
use rand_pcg::Pcg64Mcg;
use smg::{
    config::address,
    gateway::{head_guard::HeadGuard, headers, worker::Worker},
    mesh::stores::{WorkerOrigin, WorkerSpec},
};

pub(super) fn run(head: &[u8]) {
    guard(head);
    let client = header_map(head);
    pass_on(&client);
    for value in client.values().filter_map(|value| value.to_str().ok()) {
        if let Ok(url) = address::canonical(value) {
            assert_eq!(address::canonical(&url).as_ref(), Ok(&url), "the canonical form is its own");
        }
    }
}

/// The guard sees the same in one read as byte by byte, as far as it follows them.
fn guard(head: &[u8]) {
    let whole = HeadGuard::new().check(head);
    let mut guard = HeadGuard::new();
    for (at, byte) in head.iter().enumerate() {
        if !guard.is_due(0) {
            return;
        }
        if guard.check(&[*byte]) == 0 {
            assert_eq!(whole, at, "refused byte by byte");
            return;
        }
    }
    assert_eq!(whole, head.len(), "passed byte by byte");
}

/// The lines as headers, as far as they can be; bad ones are left out.
fn header_map(head: &[u8]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').take(100) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (HeaderName::from_bytes(&line[..colon]), line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

fn pass_on(client: &HeaderMap) {
    let spec = WorkerSpec {
        url: "http://worker:9001".into(),
        models: Vec::new(),
        api_key: None,
        zone: String::new(),
        origin: WorkerOrigin::Api,
        draining: false,
    };
    let worker = Worker::of_spec(&spec, None).expect("a plain worker");
    let names = [HeaderName::from_static("x-request-id"), HeaderName::from_static("x-correlation-id")];
    let (name, id) = headers::request_id(client, &names, &mut Pcg64Mcg::seed_from_u64(1));
    let is_id =
        (1..=headers::REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic);
    assert!(names.contains(&name) && is_id, "a request id is visible and short");
    let added = headers::Added { request_id: (&name, &id), keeps_authorization: false, context: None };
    let mut sent = HeaderMap::new();
    headers::to_worker(client, &worker, added, |name, value| {
        sent.append(name.clone(), value.clone());
    });
    assert_eq!(sent.get_all(header::HOST).iter().count(), 1);
    assert_eq!(sent.get_all(&name).iter().count(), 1);
    let is_clean = |name: &HeaderName| {
        let ours = [header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH, header::AUTHORIZATION];
        !ours.contains(name) && !name.as_str().starts_with("x-smg-")
    };
    assert!(sent.keys().all(is_clean), "{sent:?}");
    let _ = headers::is_json(client);
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    [
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json; charset=utf-8\r\n\
         Content-Length: 2\r\nAuthorization: Bearer key\r\nX-Request-Id: r-1\r\n\r\n{}",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close, x-hop\r\nX-Hop: 1\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\n\nGET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nX-SMG-Target-Worker: https://[::1]:8443/Base/\r\nX-SMG-Explain: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 00000000000000000000000000000000000000000000000000000000000000002\r\n\r\n{}",
        "POST / HTTP/1.1\r\nTransfer-Encoding:                                                            chunked\r\n\r\n",
    ]
    .map(|head| head.as_bytes().to_vec())
    .into()
}
