//! Requests whose client says where to, or asks where they went.

use super::*;

/// Answers one request at whichever worker it comes to.
async fn answered_by(upstreams: &[Upstream], client: &mut Wire, request: String) -> (usize, Message) {
    client.send(request).await;
    let accept = |upstream| Box::pin(Upstream::accept(upstream));
    let (mut wire, index, _) = futures_util::future::select_all(upstreams.iter().map(accept)).await;
    wire.message().await;
    // One connection for each request, so that each is accepted.
    wire.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}").await;
    (index, client.message().await)
}

#[tokio::test]
async fn a_named_worker_gets_the_request() {
    let upstreams = [Upstream::new().await, Upstream::new().await, Upstream::new().await];
    let workers: Vec<_> = upstreams.iter().map(Upstream::worker).collect();
    let plane = start(&workers);
    let mut client = Wire::connect(&plane).await;
    let url = format!("http://{}", workers[1].authority);
    for (named, expected) in [("2", 2), (workers[0].id.as_str(), 0), (&url, 1), ("2", 2)] {
        let request = post_with(&format!("X-SMG-Target-Worker: {named}\r\nX-SMG-Explain: 1\r\n"), CHAT);
        let (index, response) = answered_by(&upstreams, &mut client, request).await;
        assert_eq!((index, response.status()), (expected, 200), "{named}");
        let route =
            format!("policy=round_robin; branch=target; worker={}; retries=0; gateway=node1", workers[expected].id);
        assert_eq!(response.header("x-smg-route"), Some(route.as_str()), "{named}");
    }
    let unknown = client.ask(post_with("X-SMG-Target-Worker: 3\r\n", CHAT)).await;
    assert_eq!((unknown.status(), unknown.error_code().as_str()), (404, "worker_not_found"));
}

#[tokio::test]
async fn no_other_worker_is_asked_when_the_named_one_fails() {
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let upstream = Upstream::new().await;
    let mut config = config();
    config.retry.retries_max = 2;
    config.mesh.zone = "a".into();
    let workers = [worker(nowhere), upstream.worker()];
    let plane = start_with(config, axum::Router::new(), &workers);
    let request = post_with("X-SMG-Target-Worker: 0\r\nX-SMG-Explain: 1\r\n", CHAT);
    let failed = Wire::connect(&plane).await.ask(request).await;
    assert_eq!((failed.status(), failed.error_code().as_str()), (502, "worker_unreachable"));
    let route =
        format!("policy=round_robin; branch=target; worker={}; retries=2; gateway=node1; zone=a", workers[0].id);
    assert_eq!(failed.header("x-smg-route"), Some(route.as_str()));
}

#[tokio::test]
async fn the_route_is_told_to_those_who_ask() {
    let upstreams = [Upstream::new().await, Upstream::new().await];
    let workers: Vec<_> = upstreams.iter().map(Upstream::worker).collect();
    let plane = start(&workers);
    let mut client = Wire::connect(&plane).await;
    for (headers, is_told) in [("", false), ("X-SMG-Explain: 0\r\n", false), ("X-SMG-Explain: 1\r\n", true)] {
        let (index, response) = answered_by(&upstreams, &mut client, post_with(headers, CHAT)).await;
        let route = format!("policy=round_robin; branch=turn; worker={}; retries=0; gateway=node1", workers[index].id);
        assert_eq!(response.header("x-smg-route"), is_told.then_some(route.as_str()), "{headers}");
    }
}
