//! The kernel's watch over a connection that is silent, or whose bytes are not taken, and how it sends lost ones again.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::StreamConfig;

/// Questions before a connection is given up: within the timeout one may be lost.
const QUESTIONS: u32 = 2;

/// The kernel counts keepalive in whole seconds (tcp(7)).
const LEAST: Duration = Duration::from_secs(1);

/// Has the kernel ask after the interval, and end the connection when no answer comes within the timeout. Where it does not,
/// pings do. And what is lost of a connection with little under way is sent again after the same time each time, up to six
/// times (tcp(7), TCP_THIN_LINEAR_TIMEOUTS): backing off serves those that fill a path, and a pipe's few bytes, a probe for
/// one, would come too late for anything.
pub(super) fn set(stream: &TcpStream, config: &StreamConfig) {
    if let Err(error) = try_set(stream, config) {
        tracing::debug!(target: "smg::mesh::transport", %error, "no TCP keepalive");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = SockRef::from(stream).set_tcp_thin_linear_timeouts(true) {
        tracing::debug!(target: "smg::mesh::transport", %error, "lost bytes are sent again ever later");
    }
}

fn try_set(stream: &TcpStream, config: &StreamConfig) -> std::io::Result<()> {
    let (interval, timeout) = (config.keepalive_interval.max(LEAST), config.keepalive_timeout.max(LEAST));
    let socket = SockRef::from(stream);
    let pause = (timeout / QUESTIONS).max(LEAST);
    let keepalive = TcpKeepalive::new().with_time(interval).with_interval(pause).with_retries(QUESTIONS);
    socket.set_tcp_keepalive(&keepalive)?;
    // With bytes under way there is no keepalive; and it bounds the questions too, whatever their pause was rounded to.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(interval + timeout))?;
    Ok(())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::grpc::Hello;

    #[tokio::test]
    async fn the_kernel_asks_and_gives_up_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let ms = Duration::from_millis;
        for (interval, timeout, expected) in
            [(ms(15_000), ms(5_000), [15_000, 2_000, 20_000]), (ms(1), ms(1), [1_000, 1_000, 2_000])]
        {
            let hello = Hello { cluster: "smg".into(), node: "n".into(), boot_epoch_ms: 1 };
            let mut config = StreamConfig::new(listener.local_addr().unwrap(), hello);
            (config.keepalive_interval, config.keepalive_timeout) = (interval, timeout);
            set(&stream, &config);
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            let found = [socket.tcp_keepalive_time(), socket.tcp_keepalive_interval()].map(Result::unwrap);
            assert_eq!(found, [ms(expected[0]), ms(expected[1])]);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(ms(expected[2])));
            assert!(socket.tcp_thin_linear_timeouts().unwrap());
        }
    }
}
