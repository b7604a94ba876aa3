//! What a client wrote is what its worker reads, and the other way round, byte for byte.

use axum::{Router, body::Bytes, http::header::CONTENT_TYPE};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};
use tokio::net::TcpListener;

use crate::harness::{Gateway, Network, eventually, s};

/// Routes whose body goes to a worker.
const ROUTES: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/rerank",
    "/v1/messages",
    "/generate",
    "/rerank",
    "/v1/classify",
];

/// Members that a parser which reads and writes again would change.
const ODD: [(&str, &str); 9] = [
    ("fields that nobody knows", r#""x_vendor":{"deep":[[[{"z":null}]]]},"β":true"#),
    ("integers of 64 bits", r#""a":9007199254740993,"b":18446744073709551615,"c":-9223372036854775808"#),
    ("an integer beyond them", r#""seed":18446744073709551616000000000000000001"#),
    ("exponents and zeros", r#""t":1E+02,"u":1.0e-7,"v":1e400,"w":-0.0,"x":0.10000000000000000000001"#),
    ("the order of keys", r#""z":1,"a":2,"m":3,"b":4"#),
    ("a key twice", r#""n":1,"n":2"#),
    ("escapes", r#""e":"\u00e9\/\ud83d\ude00\b\u0000","f":"é/😀""#),
    ("a lone surrogate", r#""l":"\ud800""#),
    ("space", " \t\"s\" \r\n: [ 1 ,\n2 ] "),
];

/// A worker that answers with the bytes that it got.
async fn echo(network: Network) -> String {
    let listener = TcpListener::bind((network.ip(100), 9000)).await.unwrap();
    let answer = async |body: Bytes| ([(CONTENT_TYPE, "application/json")], body);
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
    format!("http://{}:9000", network.ip(100))
}

/// JSON text as nobody's serializer would write it.
fn any_text() -> impl Strategy<Value = String> {
    let space = prop_oneof![3 => Just(""), 1 => Just(" "), 1 => Just("\r\n\t")];
    let leaf = prop_oneof![
        "-?(0|[1-9][0-9]{0,24})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?",
        "\"([a-zé ]|\\\\u[0-9a-f]{4}|\\\\[\"\\\\/bfnrt]){0,12}\"",
        "null|true|false",
    ];
    let member = ("\"[a-z]{0,2}\"", space, Just(":"));
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let pair = (member.clone(), inner.clone())
            .prop_map(|((key, space, colon), value)| [&key, space, colon, &value].concat());
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(" ,"))),
            proptest::collection::vec(pair, 0..4).prop_map(|pairs| format!("{{{}}}", pairs.join(","))),
        ]
    })
}

/// Bodies by what is special in them.
fn bodies() -> Vec<(String, String)> {
    let whole = |odd: &str| format!(r#"{{"messages":[{{"role":"user","content":"hello"}}],"model":"m1",{odd}}}"#);
    let mut bodies: Vec<_> = ODD.iter().map(|(case, odd)| ((*case).to_owned(), whole(odd))).collect();
    bodies.push(("size".to_owned(), whole(&format!("\"pad\":\"{}\"", "é".repeat(600_000)))));
    let mut runner =
        TestRunner::new_with_rng(ProptestConfig::default(), TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    for n in 0..100 {
        let text = any_text().new_tree(&mut runner).unwrap().current();
        bodies.push((format!("random {n}"), whole(&format!("\"any\":{text}"))));
    }
    bodies
}

#[tokio::test]
async fn bodies_arrive_byte_for_byte_on_every_route() {
    let network = Network::new();
    let url = echo(network).await;
    let flags = ["--worker-urls", &url, "--disable-health-check"];
    let gateway = Gateway::start(network, 1, &[], &flags);
    eventually(s(10), "ready", async || gateway.is_ready().await).await;
    for (number, (case, body)) in bodies().into_iter().enumerate() {
        let route = ROUTES[number % ROUTES.len()];
        let routes = if number < ODD.len() { &ROUTES[..] } else { &[route][..] };
        for route in routes {
            for is_chunked in [false, true] {
                let sent = if is_chunked {
                    let pieces =
                        body.as_bytes().chunks(body.len() / 3 + 1).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
                    reqwest::Body::wrap_stream(tokio_stream::iter(pieces.collect::<Vec<_>>()))
                } else {
                    body.clone().into()
                };
                let request = gateway.http.post(gateway.url(route)).header("content-type", "application/json");
                let answer = request.body(sent).send().await.unwrap();
                let (status, got) = (answer.status(), answer.bytes().await.unwrap());
                assert_eq!(status, 200, "{case} on {route}: {}", String::from_utf8_lossy(&got));
                assert!(
                    got == body.as_bytes(),
                    "{case} on {route}, in chunks: {is_chunked}:\n{body}\n{}",
                    String::from_utf8_lossy(&got)
                );
            }
        }
    }
}
