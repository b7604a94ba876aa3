//! The worker over real connections on loopback.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Args, bind, stats::Stats};

/// A worker that serves until it is dropped.
struct Worker {
    url: String,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<Result<(), super::server::Crashed>>>,
    stats: Box<dyn Fn() -> Stats>,
    client: reqwest::Client,
}

impl Worker {
    async fn start(args: Args) -> Self {
        let server = bind(args).await.unwrap();
        let (url, stats) = (format!("http://{}", server.local_addr()), Box::new(server.stats()));
        let stop = CancellationToken::new();
        let served = Some(tokio::spawn(server.serve(stop.clone())));
        Self { url, stop, served, stats, client: reqwest::Client::new() }
    }

    async fn post(&self, path: &str, body: Value) -> reqwest::Result<reqwest::Response> {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().await
    }

    async fn ask(&self, path: &str, body: Value) -> Value {
        self.post(path, body).await.unwrap().json().await.unwrap()
    }

    /// Waits until the statistics satisfy `condition`, at most 10 s.
    async fn eventually(&self, what: &str, condition: impl Fn(&Stats) -> bool) {
        let reached = async {
            while !condition(&(self.stats)()) {
                tokio::task::yield_now().await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_secs(10), reached).await;
        assert!(in_time.is_ok(), "{what}: {:?}", (self.stats)());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn chat(content: &str) -> Value {
    json!({"model": "sim", "messages": [{"role": "user", "content": content}]})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    body
}

/// The `data:` values of a stream, the last being `[DONE]` where the API has one.
fn events(text: &str) -> Vec<&str> {
    text.split("\n\n").filter_map(|event| event.rsplit_once("data: ").map(|(_, data)| data)).collect()
}

#[tokio::test]
async fn answers_depend_on_model_and_prompt_alone() {
    let (one, two) = (Worker::start(Args::default()).await, Worker::start(Args::default()).await);
    let mut answers = Vec::new();
    for (worker, content) in [(&one, "hello"), (&two, "hello"), (&two, "other")] {
        let answer = worker.ask("/v1/chat/completions", chat(content)).await;
        answers.push(answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned());
    }
    assert_eq!(answers[0], answers[1]);
    assert_ne!(answers[0], answers[2]);
    assert_eq!(answers[0].split(' ').count(), 16);
}

#[tokio::test]
async fn usage_reports_what_came_from_the_cache() {
    let worker = Worker::start(Args::default()).await;
    let prompt = "x".repeat(640);
    for (case, cached) in [("cold", 0), ("warm", 160)] {
        let usage = &worker.ask("/v1/chat/completions", chat(&prompt)).await["usage"];
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], cached, "{case}");
        assert_eq!(usage["prompt_tokens"], 165, "{case}");
        assert_eq!(usage["completion_tokens"], 16, "{case}");
    }
    assert_eq!((worker.stats)().cached_tokens, 160);
    worker.ask("/flush_cache", json!({})).await;
    assert_eq!((worker.stats)().cache_tokens, 0);
}

#[tokio::test]
async fn streams_are_valid_events_that_add_up_to_the_whole_answer() {
    let worker = Worker::start(Args::default()).await;
    let whole = worker.ask("/v1/chat/completions", chat("hi")).await;
    let response = worker.post("/v1/chat/completions", streamed(chat("hi"))).await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let text = response.text().await.unwrap();
    let (done, chunks) = { events(&text).split_last().map(|(d, c)| ((*d).to_owned(), c.to_vec())).unwrap() };
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = chunks.iter().map(|chunk| serde_json::from_str(chunk).unwrap()).collect();
    let content: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(whole["choices"][0]["message"]["content"], content);
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 16);
    assert!(chunks.iter().all(|chunk| chunk["id"] == whole["id"]));
}

#[tokio::test]
async fn every_api_streams_valid_json() {
    let worker = Worker::start(Args::default()).await;
    for (path, body, last) in [
        ("/v1/completions", json!({"prompt": "a"}), "[DONE]"),
        ("/generate", json!({"text": "a", "sampling_params": {"max_new_tokens": 3}}), "[DONE]"),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}), "message_stop"),
        ("/v1/responses", json!({"input": "a"}), "response.completed"),
    ] {
        let text = worker.post(path, streamed(body)).await.unwrap().text().await.unwrap();
        let events = events(&text);
        assert!(events.last().unwrap().contains(last), "{path}");
        for event in events.iter().filter(|event| **event != "[DONE]") {
            assert!(serde_json::from_str::<Value>(event).is_ok(), "{path}: {event}");
        }
    }
}

#[tokio::test]
async fn other_routes_answer_in_their_shapes() {
    let worker = Worker::start(Args::default()).await;
    for (path, body, pointer, expected) in [
        ("/v1/embeddings", json!({"input": ["a", "b"], "dimensions": 3}), "/data/1/index", json!(1)),
        ("/v1/embeddings", json!({"input": "a", "encoding_format": "base64"}), "/data/0/object", json!("embedding")),
        ("/v1/rerank", json!({"query": "q", "documents": ["a", "b", "c"], "top_n": 1}), "/results/1", Value::Null),
        ("/rerank", json!({"query": "q", "documents": [{"text": "a"}]}), "/results/0/index", json!(0)),
        ("/v1/classify", json!({"input": "a"}), "/data/0/num_classes", json!(3)),
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 2}), "/choices/0/finish_reason", json!("length")),
        ("/generate", json!({"text": "a"}), "/meta_info/completion_tokens", json!(16)),
        ("/v1/messages", json!({"messages": [{"role": "user", "content": "a"}]}), "/stop_reason", json!("end_turn")),
        ("/v1/chat/completions", json!({"model": "no", "messages": []}), "/error/code", json!("model_not_found")),
        ("/v1/chat/completions", json!({"messages": []}), "/error/type", json!("invalid_request_error")),
        ("/v1/chat/completions", json!([]), "/error/type", json!("invalid_request_error")),
        ("/no/such/route", json!({}), "/error/code", json!("not_found")),
    ] {
        let answer = worker.ask(path, body).await;
        assert_eq!(answer.pointer(pointer).unwrap_or(&Value::Null), &expected, "{path}: {answer}");
    }
    for path in ["/health", "/v1/models", "/get_model_info", "/get_server_info", "/health_generate", "/get_loads"] {
        let response = worker.client.get(format!("{}{path}", worker.url)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn responses_are_found_by_id_until_deleted() {
    let worker = Worker::start(Args::default()).await;
    let response = worker.ask("/v1/responses", json!({"input": "hi"})).await;
    let url = format!("{}/v1/responses/{}", worker.url, response["id"].as_str().unwrap());
    let found: Value = worker.client.get(&url).send().await.unwrap().json().await.unwrap();
    assert_eq!(found, response);
    for (case, status) in [("first", 200), ("again", 404)] {
        assert_eq!(worker.client.delete(&url).send().await.unwrap().status(), status, "{case}");
    }
}

#[tokio::test]
async fn faults_are_armed_and_disarmed_at_run_time() {
    let worker = Worker::start(Args { faults: vec!["503:first-1".parse().unwrap()], ..Args::default() }).await;
    let response = worker.post("/v1/chat/completions", chat("a")).await.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    for (fault, status) in [("429", 429), ("500", 500), ("503", 503)] {
        worker.ask("/sim/faults", json!({"faults": [fault]})).await;
        assert_eq!(worker.post("/v1/chat/completions", chat("a")).await.unwrap().status(), status);
    }
    for body in [json!({"faults": ["nonsense"]}), json!({}), json!([])] {
        assert_eq!(worker.post("/sim/faults", body).await.unwrap().status(), 400);
    }
    worker.ask("/sim/faults", json!({"faults": []})).await;
    assert_eq!(worker.post("/v1/chat/completions", chat("a")).await.unwrap().status(), 200);
    assert_eq!((worker.stats)().faults, 4);
}

#[tokio::test]
async fn broken_answers_never_look_complete() {
    let worker = Worker::start(Args::default()).await;
    for (fault, body) in [
        ("reset", chat("a")),
        ("truncate", chat("a")),
        ("truncate", streamed(chat("a"))),
        ("reset", streamed(chat("a"))),
    ] {
        worker.ask("/sim/faults", json!({"faults": [fault]})).await;
        match worker.post("/v1/chat/completions", body).await {
            Ok(mut response) => {
                assert_eq!((fault, response.status().as_u16()), ("truncate", 200));
                assert!(response.chunk().await.unwrap().is_some_and(|part| !part.is_empty()), "it begins");
                while let Ok(part) = response.chunk().await {
                    assert!(part.is_some(), "it never ends");
                }
            }
            Err(_) => assert_eq!(fault, "reset"),
        }
    }
    worker.eventually("all settled", |stats| stats.active == 0).await;
    assert_eq!((worker.stats)().aborted_requests, 0);
}

#[tokio::test]
async fn a_crash_ends_the_worker() {
    let mut worker = Worker::start(Args { faults: vec!["crash:every-2".parse().unwrap()], ..Args::default() }).await;
    assert!(worker.post("/v1/chat/completions", chat("a")).await.is_ok());
    assert!(worker.post("/v1/chat/completions", chat("a")).await.is_err());
    assert!(worker.served.take().unwrap().await.unwrap().is_err());
    assert!(worker.client.get(format!("{}/health", worker.url)).send().await.is_err());
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_and_frees_its_slot() {
    let slow = Args { ttft_ms: 3_600_000, max_concurrency: 1, ..Args::default() };
    for (case, args) in [("hang", Args { faults: vec!["hang".parse().unwrap()], ..Args::default() }), ("prefill", slow)]
    {
        let worker = Worker::start(args).await;
        let request = worker.client.post(format!("{}/v1/chat/completions", worker.url)).json(&chat("a")).send();
        let task = tokio::spawn(request);
        worker.eventually(case, |stats| stats.requests == 1).await;
        task.abort();
        worker.eventually(case, |stats| stats.aborted_requests == 1 && stats.active == 0).await;
    }
}

#[tokio::test]
async fn concurrency_and_queue_are_bounded() {
    let args = Args { ttft_ms: 3_600_000, max_concurrency: 1, queue_size: 1, ..Args::default() };
    let worker = Worker::start(args).await;
    let send = || {
        tokio::spawn(worker.client.post(format!("{}/v1/completions", worker.url)).json(&json!({"prompt": "a"})).send())
    };
    let first = send();
    worker.eventually("first has the slot", |stats| stats.active == 1).await;
    let second = send();
    worker.eventually("second waits", |stats| stats.waiting == 1).await;
    assert_eq!(worker.post("/v1/completions", json!({"prompt": "a"})).await.unwrap().status(), 503);
    first.abort();
    worker.eventually("second has the slot", |stats| stats.waiting == 0 && stats.active == 1).await;
    second.abort();
    worker.eventually("nobody is left", |stats| stats.active == 0).await;
    let stats = (worker.stats)();
    assert_eq!((stats.peak_concurrency, stats.queue_full, stats.aborted_requests), (1, 1, 2));
}

#[tokio::test]
async fn shutdown_lets_requests_end() {
    let mut worker = Worker::start(Args { ttft_ms: 200, ..Args::default() }).await;
    let request = worker.client.post(format!("{}/v1/chat/completions", worker.url)).json(&chat("a")).send();
    let task = tokio::spawn(request);
    worker.eventually("in flight", |stats| stats.active == 1).await;
    worker.stop.cancel();
    assert_eq!(task.await.unwrap().unwrap().status(), 200);
    assert!(worker.served.take().unwrap().await.unwrap().is_ok());
}
