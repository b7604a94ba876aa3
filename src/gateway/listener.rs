//! Listening sockets, one per core on one port, and the loop that accepts from one.

use std::{
    fmt,
    fs::File,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    rc::Rc,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::gateway::{
    connection::{self, Connection},
    core::Core,
};

/// Connections that the kernel completes before they are accepted, per core.
const BACKLOG: i32 = 4096;

/// Pause after an accept error that shedding did not cure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Shortest time between two log lines of a core about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Binds `count` listeners to one port. With port 0 the first one's free port is taken for all.
///
/// # Errors
///
/// The address cannot be bound, among others because a process has the port already: sharing of ports is for the
/// listeners of one process, so another process's listener is an error even where the kernel would allow it.
pub(crate) fn bind(addr: SocketAddr, count: usize) -> io::Result<Vec<StdListener>> {
    if addr.port() != 0 {
        drop(listen(addr, false)?);
    }
    let first = listen(addr, true)?;
    let bound = first.local_addr()?;
    let rest = (1..count).map(|_| listen(bound, true));
    std::iter::once(Ok(first)).chain(rest).collect()
}

fn listen(addr: SocketAddr, is_shared: bool) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(is_shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the task is dropped.
pub(crate) async fn accept(core: &Rc<Core>, listener: &TcpListener, shedding: &mut Shedding) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if !spawn(core, stream, peer) {
                    shedding.log(&"as many connections as half the descriptors allow");
                }
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => shedding.on_error(&error, listener).await,
        }
    }
}

/// Accepts what the kernel has completed already: closing the listener would reset it.
pub(crate) fn accept_rest(core: &Rc<Core>, listener: &TcpListener) {
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        spawn(core, stream, peer);
    }
}

/// Serves the connection; false when there are too many, and it is closed.
fn spawn(core: &Rc<Core>, stream: TcpStream, peer: SocketAddr) -> bool {
    if stream.set_nodelay(true).is_err() {
        return true;
    }
    let now = Instant::now();
    let connection = Rc::new(Connection::new(peer, now));
    let Some(open) = core.open(connection.clone(), now) else { return false };
    let core = core.clone();
    tokio::task::spawn_local(async move {
        connection::run(core, connection, stream).await;
        drop(open);
    });
    true
}

/// Errors of one connection that died in the queue; the next one may be fine.
fn is_of_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// What to do when the process is out of descriptors: a waiting connection would make the listener ready for ever, so
/// a descriptor held in reserve serves to accept it and hang up.
pub(crate) struct Shedding {
    reserve: Option<File>,
    logged: Option<Instant>,
}

impl Shedding {
    pub(crate) fn new() -> Self {
        Self { reserve: reserve(), logged: None }
    }

    fn log(&mut self, error: &dyn fmt::Display) {
        let now = Instant::now();
        if self.logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_INTERVAL) {
            self.logged = Some(now);
            tracing::error!(%error, "client connections are refused");
        }
    }

    async fn on_error(&mut self, error: &io::Error, listener: &TcpListener) {
        self.log(error);
        self.reserve = None;
        let is_cured = matches!(listener.accept().now_or_never(), Some(Ok(_)));
        self.reserve = reserve();
        if !is_cured {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn reserve() -> Option<File> {
    File::open("/dev/null").ok()
}
