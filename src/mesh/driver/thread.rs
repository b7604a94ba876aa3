//! The thread of the mesh: a runtime that runs the driver and the datagrams, and nothing else.
//!
//! What a packet sets in motion, QUIC included, is done on this one thread before it sleeps again. On a runtime of several
//! threads each step may wake another, and an idle node by TLS spent more than half of its time on that. Probes also wait for
//! nothing else that way: not for admin requests, nor for pipes and the handshakes of others, which stay on the runtime that
//! started this. Those of a QUIC connection that is younger than its handshake may take pass through there too.

use std::{future::Future, io, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinHandle,
};

/// A runtime that has been started, and ends with the task that it is given.
pub(super) struct Thread {
    handle: Handle,
    /// Dropped when the task has ended; none where it runs on the runtime of the caller.
    running: Option<oneshot::Sender<()>>,
}

impl Thread {
    /// Starts a thread, or takes the current runtime where none is wanted.
    ///
    /// # Errors
    /// When the system gives no thread, or no descriptors for its runtime.
    pub(super) fn start(is_own: bool) -> io::Result<Self> {
        if !is_own {
            return Ok(Self { handle: Handle::current(), running: None });
        }
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (running, ended) = oneshot::channel();
        thread::Builder::new().name("smg-mesh".to_owned()).spawn(move || {
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { handle, running: Some(running) })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Makes something that belongs to the runtime, as what it is to watch.
    pub(super) fn within<T>(&self, make: impl FnOnce() -> T) -> T {
        let _within = self.handle.enter();
        make()
    }

    /// Runs a task there; the thread ends with it.
    pub(super) fn run<F>(self, task: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let running = self.running;
        self.handle.spawn(async move {
            let output = task.await;
            drop(running);
            output
        })
    }
}
